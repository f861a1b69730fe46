"""What the prompt check says, in English and Chinese: (what was found, what to do) by a finding's code."""

MESSAGES: dict[str, dict[str, tuple[str, str]]] = {
    "over_budget": {
        "en": ("{lost} tokens too many; lost: {excerpt}", "shorten the prompt by {lost} tokens"),
        "zh": ("超出 {lost} 个 token；被截掉的内容：{excerpt}", "请把提示词缩短 {lost} 个 token"),
    },
    "end_lost": {
        "en": (
            "{lost} tokens too many; the prompt fits, but the template's end is lost",
            "shorten the prompt by {lost} tokens",
        ),
        "zh": (
            "超出 {lost} 个 token；提示词放得下，但模板的结尾被截掉",
            "请把提示词缩短 {lost} 个 token",
        ),
    },
    "unbalanced_quote": {
        "en": ("the quotation mark {excerpt} has no partner", "close it or take it out"),
        "zh": ("引号 {excerpt} 不成对", "请补上另一半或删掉"),
    },
    "mixed_quotes": {
        "en": ("{excerpt} closes another kind of quotation mark", "write {expected}"),
        "zh": ("{excerpt} 与前面的引号不是一对", "请改成 {expected}"),
    },
    "single_quotes": {
        "en": (
            "{excerpt} is in single quotes, which are apostrophes to the model",
            "use double quotes",
        ),
        "zh": ("{excerpt} 用了单引号，模型会当成撇号", "请用双引号"),
    },
    "unquoted_copy": {
        "en": ("{excerpt} looks like text to be drawn but is not in quotes", "put it in quotes"),
        "zh": ("{excerpt} 像是要画出来的文字，却没有放在引号里", "请加上引号"),
    },
    "no_copy": {
        "en": ("no text is in quotes, so no words are asked for", "put what is to be read in quotes"),
        "zh": ("引号里没有文字，等于没有要求画字", "请把要画出来的文字放在引号里"),
    },
    "merged_symbol": {
        "en": (
            "{excerpt}: the quotation mark and the symbol are one token, so the symbol may get lost",
            "use curly quotes “ ”",
        ),
        "zh": ("{excerpt}：引号与符号并成了一个 token，符号可能画不出来", "请用弯引号“ ”"),
    },
    "rare_symbol": {
        "en": (
            "the symbol {excerpt} has no token and is read as bytes, so it is likely to be drawn badly",
            "write it in words or common characters",
        ),
        "zh": (
            "符号 {excerpt} 没有自己的 token，只能按字节读取，很可能画不好",
            "请改用文字或常用字符",
        ),
    },
    "rare_character": {
        "en": (
            "the character {excerpt} has no token and is read as bytes, so it is likely to be drawn badly",
            "choose a more common one, or check it in the picture",
        ),
        "zh": (
            "生僻字 {excerpt} 没有自己的 token，只能按字节读取，很可能画不好",
            "请换成常用字，或在图中仔细核对",
        ),
    },
    "split_character": {
        "en": (
            "the character {excerpt} is read as bytes after a space and may be drawn badly",
            "take out the space before it",
        ),
        "zh": ("空格之后的 {excerpt} 会按字节读取，可能画不好", "请删掉它前面的空格"),
    },
    "control_token": {
        "en": (
            "{excerpt} is a control token: the model reads a command, not these characters",
            "take it out",
        ),
        "zh": ("{excerpt} 是控制标记：模型会当作指令，而不是这些字符", "请删掉"),
    },
    "embedding": {
        "en": (
            "{excerpt} loads nothing with Ovis-Image's CLIP and vanishes with ComfyUI's own",
            "take it out",
        ),
        "zh": (
            "{excerpt} 在 Ovis-Image 的 CLIP 中不会加载任何东西，在 ComfyUI 自带的 CLIP 中会消失",
            "请删掉",
        ),
    },
    "weight": {
        "en": ("{excerpt}: weights do nothing here, they are read as text", "write the words alone"),
        "zh": ("{excerpt}：权重语法在这里不起作用，会当成文字", "请只写词语本身"),
    },
    "lora_tag": {
        "en": ("{excerpt} loads nothing, it is read as text", "use the Ovis-Image LoRA Loader"),
        "zh": ("{excerpt} 不会加载任何东西，只会当成文字", "请用 Ovis-Image LoRA 加载器"),
    },
    "editor_syntax": {
        "en": (
            "{excerpt} is kept by these nodes, but ComfyUI's ordinary prompt boxes change it",
            "type it in Ovis nodes only",
        ),
        "zh": (
            "{excerpt} 在本套节点中会原样保留，但 ComfyUI 的普通提示词框会改动它",
            "请只在 Ovis 节点中输入",
        ),
    },
    "late_vertical": {
        "en": (
            "{excerpt} is asked for after the text, where the model tends to miss it",
            "say it before the first quoted text",
        ),
        "zh": ("{excerpt} 写在文字之后，模型容易忽略", "请写在第一处引号之前"),
    },
    "high_guidance": {
        "en": ("guidance {value} is above 7, where letters grow thick and burn out", "use about 5"),
        "zh": ("引导强度 {value} 高于 7，笔画容易变粗、过曝", "建议用 5 左右"),
    },
    "few_steps": {
        "en": ("{value} steps are below 20, too few for clean letters", "use 50, or 20 for a draft"),
        "zh": ("步数 {value} 低于 20，文字难以清晰", "建议用 50，草稿用 20"),
    },
}
SEVERITIES = {
    "error": {"en": "error", "zh": "错误"},
    "warning": {"en": "warning", "zh": "警告"},
    "note": {"en": "note", "zh": "提示"},
}
TOKENS = {
    "en": "{used} of {limit} tokens ({template} of them the template's)",
    "zh": "{limit} 个 token 中用了 {used} 个（其中模板占 {template} 个）",
}
NO_METER = {
    "en": "tokens not counted: connect a CLIP",
    "zh": "未计算 token：请连接 CLIP",
}
CLEAN = {"en": "nothing to complain of", "zh": "没有发现问题"}
COUNTS = {"en": "{count} {label}", "zh": "{label} {count} 条"}
PLURALS = {"en": "s", "zh": ""}
FIXED = {"en": "fixed", "zh": "已修正"}
PLACE = {"en": "line {line}, column {column}", "zh": "第 {line} 行第 {column} 列"}
JOINTS = {"en": ("; ", ": "), "zh": ("；", "：")}
