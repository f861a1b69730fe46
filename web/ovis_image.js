// What the editor shows of these nodes beyond their schemas: list values in the editor's language, fields
// greyed where a preset rules, and the prompt that Ovis Copy writes while one types.
import { api } from "../../scripts/api.js"
import { app } from "../../scripts/app.js"

const TYPING_PAUSE = 400 // milliseconds
const isLinked = (node, name) => node.inputs?.find(input => input.widget?.name === name)?.link != null
const quiet = () => {} // while the server is away there is nothing to show
let nodeTexts = {}

/** Calls `changed` after a widget's own callback, whenever its value is set by hand. */
function follow(widget, changed) {
    const callback = widget.callback
    widget.callback = function (...values) {
        const result = callback?.apply(this, values)
        changed()
        return result
    }
}

/** Shows list values, and the names inside empty text fields, as the locale has them; what is sent stays. */
function translate(node) {
    for (const widget of node.widgets ?? []) {
        const texts = nodeTexts[node.comfyClass]?.inputs?.[widget.name]
        if (texts?.options) widget.options.getOptionLabel = value => texts.options[value] ?? value
        if (texts && widget.element?.placeholder === widget.name) widget.element.placeholder = texts.name
    }
}

/** Greys width and height where the aspect ratio says them. */
function greyPresetSides(node) {
    const widget = name => node.widgets.find(widget => widget.name === name)
    const preset = widget("aspect_ratio")
    const update = () => {
        const ruled = preset.value !== "custom" && !isLinked(node, "aspect_ratio")
        for (const side of ["width", "height"]) widget(side).disabled = ruled
        node.setDirtyCanvas?.(true)
    }
    follow(preset, update)
    const configured = node.onConfigure
    node.onConfigure = function (...values) {
        configured?.apply(this, values)
        update()
    }
    update()
}

/** Shows the prompt and its tokens on Ovis Copy, as a run does. Fields that are linked are left out. */
function showPrompt(node) {
    let timer
    const ask = async () => {
        const fields = node.widgets.filter(widget => !isLinked(node, widget.name))
        const body = JSON.stringify(Object.fromEntries(fields.map(({ name, value }) => [name, value])))
        const answer = await api.fetchApi("/ovis_image/copy", { method: "POST", body })
        const { prompt, tokens, error } = await answer.json()
        const text = error ?? `${tokens}:\n${prompt}`
        api.dispatchCustomEvent("progress_text", { nodeId: String(node.id), text })
        node.setSize([node.size[0], Math.max(node.size[1], node.computeSize()[1])])
    }
    for (const widget of node.widgets) {
        follow(widget, () => {
            clearTimeout(timer)
            // While one types, not when a graph is opened. Only nodes of the main graph have the address that the
            // editor shows texts at.
            const typing = document.activeElement?.matches("input, textarea")
            if (typing && node.graph === app.rootGraph) timer = setTimeout(() => ask().catch(quiet), TYPING_PAUSE)
        })
    }
}

app.registerExtension({
    name: "ovis-image",
    async init() {
        const locale = app.extensionManager?.setting?.get("Comfy.Locale")
        const texts = await (await api.fetchApi("/i18n")).json()
        nodeTexts = texts[locale]?.nodeDefs ?? {}
    },
    nodeCreated(node) {
        translate(node)
        if (node.comfyClass === "OvisImageEmptyLatent") greyPresetSides(node)
        if (node.comfyClass === "OvisCopy") showPrompt(node)
    },
})
