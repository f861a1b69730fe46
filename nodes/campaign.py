"""Turns a table into many pictures, and many pictures into one sheet."""

from comfy_api.latest import io, ui
from server import PromptServer

from .adapters.words.campaign import PASTED, labelled_grid, plan_table, table_names, table_state

CATEGORY = "Ovis-Image/Text"
LAST = 10_000_000


def _template(name: str, default: str, tooltip: str) -> io.String.Input:
    return io.String.Input(name, default=default, dynamic_prompts=False, tooltip=tooltip)


def _row_number(name: str, default: int, least: int, tooltip: str) -> io.Int.Input:
    return io.Int.Input(name, default=default, min=least, max=LAST, tooltip=tooltip)


class OvisCampaignRows(io.ComfyNode):
    """A node that plans the pictures of a table."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="OvisCampaignRows",
            display_name="Ovis Campaign Rows",
            category=CATEGORY,
            description=(
                "Makes one picture a row of a table: CSV, TSV, JSON or JSON lines, as spreadsheets save it. "
                "{column} in a template is the row's cell, {row} its number, {{ and }} are braces."
            ),
            search_aliases=["ovis", "csv", "tsv", "json", "spreadsheet", "excel", "batch", "list", "table"],
            inputs=[
                io.Combo.Input(
                    "file",
                    options=table_names(),
                    default=PASTED,
                    tooltip="A .csv, .tsv, .json, .jsonl or .txt file in the input folder, in UTF-8, UTF-16 "
                    "or GBK, or the rows below.",
                ),
                io.String.Input(
                    "rows",
                    default="",
                    multiline=True,
                    placeholder="headline,style\nOPEN 24H,neon sign\n双11狂欢,霓虹灯",
                    dynamic_prompts=False,
                    tooltip="Rows pasted from a table, the names of the columns first. Used when no file is "
                    "chosen.",
                ),
                _template("headline", "{headline}", "Template of the headline, or of a whole prompt."),
                _template("style", "{style}", "Template of the style; may be empty."),
                _template("seed", "", "Template of the seed, a whole number. Empty: the row's number."),
                _template("size", "1024x1024", "Template of WIDTHxHEIGHT in pixels, multiples of 16."),
                _template(
                    "file_name",
                    "campaign/{row}",
                    "Template of the name below the output folder, without ending; / divides folders. "
                    "Connect it to a Save Image node's filename_prefix.",
                ),
                _row_number("first_row", 1, 1, "The first row to make, 1 is the one below the header."),
                _row_number("last_row", 0, 0, "The last row to make; 0 is the table's last."),
                _row_number(
                    "max_rows",
                    16,
                    0,
                    "How many rows are made in one run at most, 0 is all. It shows them at its end.",
                ),
                io.Boolean.Input(
                    "skip_existing",
                    default=False,
                    tooltip="Leave out rows whose file_name has a picture in the output folder; they do not "
                    "count towards max_rows. Queue again to go on.",
                ),
            ],
            outputs=[
                io.String.Output(display_name="headline", is_output_list=True, tooltip="A headline a row."),
                io.String.Output(display_name="style", is_output_list=True, tooltip="A style a row."),
                io.Int.Output(display_name="seed", is_output_list=True, tooltip="A seed a row."),
                io.Int.Output(display_name="width", is_output_list=True, tooltip="A width a row, pixels."),
                io.Int.Output(display_name="height", is_output_list=True, tooltip="A height a row, pixels."),
                io.String.Output(
                    display_name="file_name",
                    is_output_list=True,
                    tooltip="A file name a row, without ending.",
                ),
                io.String.Output(
                    display_name="report", tooltip="How many rows are made, and what is wrong with others."
                ),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def fingerprint_inputs(cls, file, skip_existing, **others):
        # The output folder changes with every run: NaN never equals itself, so ComfyUI looks again.
        return table_state(file) if skip_existing is False else float("nan")

    @classmethod
    def execute(cls, file: str, rows: str, **how) -> io.NodeOutput:
        plan = plan_table(file, rows, **how)
        PromptServer.instance.send_progress_text(plan.summary, cls.hidden.unique_id)
        fields = ("headline", "style", "seed", "width", "height", "file_name")
        lists = [[getattr(job, field) for job in plan.jobs] for field in fields]
        return io.NodeOutput(*lists, plan.report, ui=ui.PreviewText(plan.report))


class OvisLabelledGrid(io.ComfyNode):
    """A node that draws pictures with labels on one sheet."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="OvisLabelledGrid",
            display_name="Ovis Labelled Grid",
            category=CATEGORY,
            description=(
                "Puts a list of pictures on one contact sheet or XY grid, with labels in any script, "
                "in the fonts of the server's system or of models/fonts."
            ),
            search_aliases=[
                "ovis",
                "contact sheet",
                "xy plot",
                "xy grid",
                "image grid",
                "labels",
                "captions",
            ],
            is_input_list=True,
            inputs=[
                io.Image.Input("images", tooltip="A list of pictures, or batches, of any sizes."),
                io.String.Input(
                    "labels",
                    default="",
                    multiline=True,
                    dynamic_prompts=False,
                    tooltip="A list of labels as long as that of pictures, or one label a line. Empty: none.",
                ),
                io.Int.Input(
                    "columns",
                    default=0,
                    min=0,
                    max=1000,
                    tooltip="Pictures side by side. 0: as many as column labels, else about a square.",
                ),
                io.Int.Input(
                    "cell_size",
                    default=512,
                    min=0,
                    max=4096,
                    tooltip="Longer side of a picture at most, pixels. 0 keeps the sizes.",
                ),
                io.Int.Input(
                    "font_size",
                    default=0,
                    min=0,
                    max=512,
                    tooltip="Height of the letters in pixels. 0 fits the pictures.",
                ),
                io.String.Input(
                    "column_labels",
                    default="",
                    multiline=True,
                    optional=True,
                    dynamic_prompts=False,
                    tooltip="One label a line, above the columns.",
                ),
                io.String.Input(
                    "row_labels",
                    default="",
                    multiline=True,
                    optional=True,
                    dynamic_prompts=False,
                    tooltip="One label a line, on the left of the rows.",
                ),
            ],
            outputs=[io.Image.Output(tooltip="The sheet.")],
        )

    @classmethod
    def execute(
        cls, images, labels, columns, cell_size, font_size, column_labels=("",), row_labels=("",)
    ) -> io.NodeOutput:
        sheet = labelled_grid(
            images,
            labels,
            column_labels="\n".join(column_labels),
            row_labels="\n".join(row_labels),
            columns=columns[0],
            cell_size=cell_size[0],
            font_size=font_size[0],
        )
        return io.NodeOutput(sheet)
