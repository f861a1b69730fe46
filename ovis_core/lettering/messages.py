"""What the prompt check says, in English and Chinese: (what was found, what to do) by a finding's code."""

MESSAGES: dict[str, dict[str, tuple[str, str]]] = {
    "over_budget": {
        "English": ("{lost} tokens too many; lost: {excerpt}", "shorten the prompt by {lost} tokens"),
        "Chinese": ("超出 {lost} 个 token；被截掉的内容：{excerpt}", "请把提示词缩短 {lost} 个 token"),
    },
    "end_lost": {
        "English": (
            "{lost} tokens too many; the prompt fits, but the template's end is lost",
            "shorten the prompt by {lost} tokens",
        ),
        "Chinese": (
            "超出 {lost} 个 token；提示词放得下，但模板的结尾被截掉",
            "请把提示词缩短 {lost} 个 token",
        ),
    },
    "unbalanced_quote": {
        "English": ("the quotation mark {excerpt} has no partner", "close it or take it out"),
        "Chinese": ("引号 {excerpt} 不成对", "请补上另一半或删掉"),
    },
    "mixed_quotes": {
        "English": ("{excerpt} closes another kind of quotation mark", "write {expected}"),
        "Chinese": ("{excerpt} 与前面的引号不是一对", "请改成 {expected}"),
    },
    "single_quotes": {
        "English": (
            "{excerpt} is in single quotes, which are apostrophes to the model",
            "use double quotes",
        ),
        "Chinese": ("{excerpt} 用了单引号，模型会当成撇号", "请用双引号"),
    },
    "unquoted_copy": {
        "English": ("{excerpt} looks like text to be drawn but is not in quotes", "put it in quotes"),
        "Chinese": ("{excerpt} 像是要画出来的文字，却没有放在引号里", "请加上引号"),
    },
    "no_copy": {
        "English": ("no text is in quotes, so no words are asked for", "put what is to be read in quotes"),
        "Chinese": ("引号里没有文字，等于没有要求画字", "请把要画出来的文字放在引号里"),
    },
    "merged_symbol": {
        "English": (
            "{excerpt}: the quotation mark and the symbol are one token, so the symbol may get lost",
            "use curly quotes “ ”",
        ),
        "Chinese": ("{excerpt}：引号与符号并成了一个 token，符号可能画不出来", "请用弯引号“ ”"),
    },
    "rare_symbol": {
        "English": (
            "the symbol {excerpt} has no token and is read as bytes, so it is likely to be drawn badly",
            "write it in words or common characters",
        ),
        "Chinese": (
            "符号 {excerpt} 没有自己的 token，只能按字节读取，很可能画不好",
            "请改用文字或常用字符",
        ),
    },
    "rare_character": {
        "English": (
            "the character {excerpt} has no token and is read as bytes, so it is likely to be drawn badly",
            "choose a more common one, or check it in the picture",
        ),
        "Chinese": (
            "生僻字 {excerpt} 没有自己的 token，只能按字节读取，很可能画不好",
            "请换成常用字，或在图中仔细核对",
        ),
    },
    "split_character": {
        "English": (
            "the character {excerpt} is read as bytes after a space and may be drawn badly",
            "take out the space before it",
        ),
        "Chinese": ("空格之后的 {excerpt} 会按字节读取，可能画不好", "请删掉它前面的空格"),
    },
    "control_token": {
        "English": (
            "{excerpt} is a control token: the model reads a command, not these characters",
            "take it out",
        ),
        "Chinese": ("{excerpt} 是控制标记：模型会当作指令，而不是这些字符", "请删掉"),
    },
    "embedding": {
        "English": (
            "{excerpt} loads nothing with Ovis-Image's CLIP and vanishes with ComfyUI's own",
            "take it out",
        ),
        "Chinese": (
            "{excerpt} 在 Ovis-Image 的 CLIP 中不会加载任何东西，在 ComfyUI 自带的 CLIP 中会消失",
            "请删掉",
        ),
    },
    "weight": {
        "English": ("{excerpt}: weights do nothing here, they are read as text", "write the words alone"),
        "Chinese": ("{excerpt}：权重语法在这里不起作用，会当成文字", "请只写词语本身"),
    },
    "lora_tag": {
        "English": ("{excerpt} loads nothing, it is read as text", "use the Ovis-Image LoRA Loader"),
        "Chinese": ("{excerpt} 不会加载任何东西，只会当成文字", "请用 Ovis-Image LoRA 加载器"),
    },
    "editor_syntax": {
        "English": (
            "{excerpt} is kept by these nodes, but ComfyUI's ordinary prompt boxes change it",
            "type it in Ovis nodes only",
        ),
        "Chinese": (
            "{excerpt} 在本套节点中会原样保留，但 ComfyUI 的普通提示词框会改动它",
            "请只在 Ovis 节点中输入",
        ),
    },
    "late_vertical": {
        "English": (
            "{excerpt} is asked for after the text, where the model tends to miss it",
            "say it before the first quoted text",
        ),
        "Chinese": ("{excerpt} 写在文字之后，模型容易忽略", "请写在第一处引号之前"),
    },
    "high_guidance": {
        "English": ("guidance {value} is above 7, where letters grow thick and burn out", "use about 5"),
        "Chinese": ("引导强度 {value} 高于 7，笔画容易变粗、过曝", "建议用 5 左右"),
    },
    "few_steps": {
        "English": ("{value} steps are below 20, too few for clean letters", "use 50, or 20 for a draft"),
        "Chinese": ("步数 {value} 低于 20，文字难以清晰", "建议用 50，草稿用 20"),
    },
}
SEVERITIES = {
    "error": {"English": "error", "Chinese": "错误"},
    "warning": {"English": "warning", "Chinese": "警告"},
    "note": {"English": "note", "Chinese": "提示"},
}
TOKENS = {
    "English": "{used} of {limit} tokens ({template} of them the template's)",
    "Chinese": "{limit} 个 token 中用了 {used} 个（其中模板占 {template} 个）",
}
NO_METER = {
    "English": "tokens not counted: connect a CLIP",
    "Chinese": "未计算 token：请连接 CLIP",
}
CLEAN = {"English": "nothing to complain of", "Chinese": "没有发现问题"}
COUNTS = {"English": "{count} {label}", "Chinese": "{label} {count} 条"}
PLURALS = {"English": "s", "Chinese": ""}
FIXED = {"English": "fixed", "Chinese": "已修正"}
PLACE = {"English": "line {line}, column {column}", "Chinese": "第 {line} 行第 {column} 列"}
JOINTS = {"English": ("; ", ": "), "Chinese": ("；", "：")}
