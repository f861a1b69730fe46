"""Writes one prompt from the texts of a poster and what surrounds them, with nothing altered."""

from dataclasses import dataclass

from .quotes import quote, quoted_texts

FIELDS = ("headline", "subtitle", "body", "call_to_action", "price", "footer")  # from top to bottom
LANGUAGES = ("en", "zh")


@dataclass(frozen=True)
class Phrasing:
    """One language's sentences around the texts.

    openers: quotation marks in order of preference.
    """

    openers: str
    style: str
    texts: str
    fields: dict[str, str]
    comma: str
    stop: str
    scene: str


PHRASINGS = {
    "en": Phrasing(
        openers='"“',
        style="Lettering: ",
        texts="Text from top to bottom: ",
        fields={
            "headline": "the large headline ",
            "subtitle": "the subtitle ",
            "body": "the body text ",
            "call_to_action": "the call to action ",
            "price": "the price ",
            "footer": "in small letters at the bottom the footer ",
        },
        comma=", ",
        stop=". ",
        scene="Scene: ",
    ),
    "zh": Phrasing(
        openers="“「『",
        style="文字样式：",
        texts="画面文字从上到下：",
        fields={
            "headline": "大标题",
            "subtitle": "副标题",
            "body": "正文",
            "call_to_action": "行动号召",
            "price": "价格",
            "footer": "底部小字",
        },
        comma="，",
        stop="。",
        scene="画面：",
    ),
}
ENDINGS = (".", "!", "?", "。", "！", "？", "…")


@dataclass(frozen=True)
class Composed:
    """A prompt, and the texts that it asks for in reading order."""

    prompt: str
    texts: tuple[str, ...]


def compose(texts: dict[str, str], scene: str = "", style: str = "", language: str = "en") -> Composed:
    """Writes copy by field as a prompt, the lettering's style first, since the model follows it best there.

    Blank fields are left out; every other character of every field is in the prompt as it is given.
    Raises ValueError when all is blank, or when quotation marks leave in doubt what is to be drawn.
    """
    phrasing = phrasing_of(language)
    asked = {field: texts[field] for field in FIELDS if texts.get(field, "").strip()}
    phrases = [
        phrasing.fields[field] + quote(text, openers_for(text, phrasing), f"the {field}")
        for field, text in asked.items()
    ]
    return Composed(assemble(phrases, tuple(asked.values()), scene, style, phrasing), tuple(asked.values()))


def assemble(phrases: list[str], texts: tuple[str, ...], scene: str, style: str, phrasing: Phrasing) -> str:
    """Joins style, quoted texts and scene to the prompt. Raises ValueError as `compose` does."""
    parts = []
    if style.strip():
        parts.append(phrasing.style + _sentence(style, phrasing))
    if phrases:
        parts.append(phrasing.texts + phrasing.comma.join(phrases) + phrasing.stop)
    if scene.strip():
        parts.append(phrasing.scene + scene if parts else scene)
    prompt = "".join(parts)
    if not prompt:
        raise ValueError("every field is empty; fill in a headline or a scene")
    if not _holds(quoted_texts(prompt), texts):
        raise ValueError(
            "the quotation marks in the style or the scene have no partner and would swallow the texts; "
            "close them or take them out"
        )
    return prompt if scene.strip() else prompt.removesuffix(" ")


def phrasing_of(language: str) -> Phrasing:
    """Looks a language up. Raises ValueError for one that is unknown."""
    if language not in PHRASINGS:
        raise ValueError(f"the language is {language!r}; choose one of {', '.join(LANGUAGES)}")
    return PHRASINGS[language]


def openers_for(text: str, phrasing: Phrasing) -> str:
    """Gives the language's quotes, but curly ones where a straight one would merge with a symbol."""
    return phrasing.openers if text[0].isalnum() else phrasing.openers.replace('"', "") + '"'


def _sentence(text: str, phrasing: Phrasing) -> str:
    return (
        text
        + phrasing.stop.strip() * (not text.rstrip().endswith(ENDINGS))
        + " " * phrasing.stop.endswith(" ")
    )


def _holds(found: list[str], wanted: tuple[str, ...]) -> bool:
    """Tells whether `found` has `wanted` in its order; the scene may quote texts of its own."""
    rest = iter(found)
    return all(text in rest for text in wanted)
