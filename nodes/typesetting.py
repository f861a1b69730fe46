"""Sets texts in type: what a model will not spell is right by construction."""

from comfy_api.latest import io

from .adapters.words.typeset import CHOSEN, COVERS, DIRECTIONS, PICTURES, font_choices, set_type

CATEGORY = "Ovis-Image/Text"
LITERAL = {"default": "", "dynamic_prompts": False}


def _number(
    name: str, default: float, least: float, most: float, step: float, tooltip: str
) -> io.Float.Input:
    return io.Float.Input(
        name, default=default, min=least, max=most, step=step, round=0.01, tooltip=tooltip, advanced=True
    )


class OvisTypeset(io.ComfyNode):
    """A node that sets texts into pictures."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="OvisTypeset",
            display_name="Ovis Typeset",
            category=CATEGORY,
            description=(
                "Sets texts into a picture with a font: all of them, in boxes, or only those that Ovis Text "
                "Verify found wrong, in place of what was drawn. Every character is as typed."
            ),
            search_aliases=[
                *(
                    "ovis",
                    "文字",
                    "draw text",
                    "text overlay",
                    "font",
                    "type",
                    "typography",
                    "price",
                    "fix text",
                ),
                *("label", "vertical text", "caption"),
            ],
            inputs=[
                io.Image.Input("image", tooltip="The picture, or several of one size."),
                io.String.Input(
                    "texts",
                    **LITERAL,
                    multiline=True,
                    tooltip="One a line, or a JSON list of texts. Each goes into a box; without boxes, all "
                    "of them are the lines of one text. Not used when verified is connected.",
                ),
                io.Combo.Input(
                    "font",
                    options=font_choices(),
                    default="bold",
                    tooltip="A kind of face, or a font file of ComfyUI's models/fonts or the system. "
                    "Characters that it lacks are taken from other fonts.",
                ),
                io.Int.Input(
                    "size",
                    default=0,
                    min=0,
                    max=4096,
                    tooltip="Size of the letters in pixels (an em); 0 is the largest that fits the box.",
                ),
                io.Combo.Input(
                    "align", options=["left", "centre", "right"], default="centre", tooltip="Across the box."
                ),
                io.Combo.Input(
                    "vertical_align",
                    options=["top", "middle", "bottom"],
                    default="middle",
                    tooltip="Up and down in the box.",
                ),
                io.Combo.Input(
                    "ink",
                    options=[CHOSEN, PICTURES],
                    default=CHOSEN,
                    tooltip="The colour below, or that of the lettering that the picture has there; black or "
                    "white where it has none.",
                ),
                io.Color.Input(
                    "colour",
                    default="#FFFFFF",
                    tooltip="Of the letters, as #RRGGBB. A box with a palette takes its first colour.",
                ),
                _number(
                    "line_spacing", 1.2, 0.5, 4.0, 0.05, "Baseline to baseline, in sizes of the letters."
                ),
                io.Int.Input(
                    "tracking",
                    default=0,
                    min=-200,
                    max=1000,
                    advanced=True,
                    tooltip="Space between characters, in thousandths of the letters' size.",
                ),
                io.Combo.Input(
                    "direction",
                    options=list(DIRECTIONS),
                    default="automatic",
                    advanced=True,
                    tooltip="Vertical sets columns from right to left. Automatic: Chinese in a box more than "
                    "twice as high as wide.",
                ),
                _number(
                    "outline", 0.0, 0.0, 30.0, 0.5, "Width of the outline, in percent of the letters' size."
                ),
                io.Color.Input(
                    "outline_colour", default="#000000", advanced=True, tooltip="Of the outline, as #RRGGBB."
                ),
                _number(
                    *("shadow", 0.0, 0.0, 50.0, 0.5),
                    "How far the shadow falls to the right and down, in percent of the letters' size.",
                ),
                _number(
                    "shadow_blur",
                    0.0,
                    0.0,
                    50.0,
                    0.5,
                    "Softness of the shadow, in percent of the letters' size.",
                ),
                io.Color.Input(
                    "shadow_colour", default="#000000", advanced=True, tooltip="Of the shadow, as #RRGGBB."
                ),
                _number("rotation", 0.0, -180.0, 180.0, 0.5, "Turns each box, in degrees, counterclockwise."),
                io.String.Input(
                    "corners",
                    **LITERAL,
                    advanced=True,
                    tooltip="Moves each box's corners: four points in percent of it, clockwise from the top "
                    "left one, as 0 0, 100 10, 100 90, 0 100. Empty leaves them.",
                ),
                _number(
                    *("margin", 8.0, 0.0, 45.0, 0.5),
                    "Kept free on each side where no boxes are connected, in percent of the picture.",
                ),
                io.Combo.Input(
                    "behind",
                    options=list(COVERS),
                    default="automatic",
                    advanced=True,
                    tooltip="Cover puts a smooth ground over what a box showed, keep leaves it. Automatic: "
                    "wrong lettering is covered, boxes are kept.",
                ),
                io.MultiType.Input(
                    "boxes",
                    [io.BoundingBox, io.Array],
                    optional=True,
                    tooltip="Bounding boxes in pixels, or elements of Create Bounding Boxes with texts.",
                ),
                io.String.Input(
                    "verified",
                    optional=True,
                    force_input=True,
                    tooltip="The json of Ovis Text Verify: only texts that are wrong in it are set, where "
                    "they stand. A picture that passed is not touched.",
                ),
            ],
            outputs=[
                io.Image.Output(tooltip="The pictures with their texts."),
                io.Mask.Output(
                    tooltip="Where each picture was changed, 0 to 1: letters, outline, shadow and what was "
                    "covered."
                ),
            ],
        )

    @classmethod
    def execute(cls, image, texts: str, **how) -> io.NodeOutput:
        return io.NodeOutput(*set_type(image, texts, **how))
