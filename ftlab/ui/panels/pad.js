// A piece of HTML that ftlab made, whose keys, clicks and copy buttons reach Python.
// Model text never comes here unescaped: the HTML is made by ftlab.ui.panels, which escapes it.

function copied(text) {
  if (navigator.clipboard && window.isSecureContext) return navigator.clipboard.writeText(text);
  const field = document.createElement("textarea"); // pages without the clipboard, such as http
  field.value = text;
  document.body.append(field);
  field.select();
  const done = document.execCommand("copy");
  field.remove();
  return done ? Promise.resolve() : Promise.reject();
}

// JupyterLab and Notebook 7 take a key for themselves unless what has the focus says otherwise. A key
// alone is the panel's, so that arrows choose in a list and no letter removes a cell; with Ctrl, Alt
// or Shift it stays theirs.
function keep(event) {
  if (!event.target.closest?.('[class*="ftlab-"]')) return;
  const held = event.ctrlKey || event.metaKey || event.altKey || event.shiftKey;
  event.target.toggleAttribute("data-lm-suppress-shortcuts", !held && event.key !== "Escape");
}

function render({ model, el }) {
  const keys = document.createElement("input"); // front ends keep their shortcuts off a text field
  const content = document.createElement("div");
  keys.type = "text";
  keys.autocomplete = "off";
  keys.spellcheck = false;
  keys.style.cssText =
    "width: 100%; box-sizing: border-box; padding: 0.4em; color: inherit; background: transparent;" +
    "border: 1px solid currentColor; border-radius: 3px; font: inherit";

  const draw = () => {
    const focused = content.contains(document.activeElement)
      ? document.activeElement.getAttribute("data-pick")
      : null;
    const opened = content.querySelector("details")?.open ?? false;
    content.innerHTML = model.get("html");
    if (opened) content.querySelector("details")?.setAttribute("open", "");
    content.setAttribute("role", "group");
    content.setAttribute("aria-label", model.get("label"));
    keys.hidden = model.get("key_names").length === 0;
    keys.setAttribute("aria-label", model.get("prompt"));
    keys.placeholder = model.get("prompt");
    if (focused === null) return;
    for (const part of content.querySelectorAll("[data-pick]"))
      if (part.getAttribute("data-pick") === focused) part.focus();
  };

  keys.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.key === "Tab") return;
    event.stopPropagation();
    event.preventDefault();
    const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
    if (!event.repeat && model.get("key_names").includes(key)) model.send({ key });
  });
  const act = (part) => {
    if (part === null) return false;
    if (part.hasAttribute("data-pick")) model.send({ pick: part.getAttribute("data-pick") });
    if (part.hasAttribute("data-copy")) {
      const before = part.textContent;
      const say = (word) => {
        part.textContent = word;
        setTimeout(() => (part.textContent = before), 1500);
      };
      copied(part.getAttribute("data-copy")).then(
        () => say("Copied"),
        () => say("Select it and press Ctrl-C"),
      );
    }
    return true;
  };
  const part = (event) => event.target.closest("[data-pick], [data-copy]");
  content.addEventListener("click", (event) => act(part(event)));
  content.addEventListener("keydown", (event) => {
    const isButton = event.target.tagName === "BUTTON"; // which clicks by itself
    if (isButton || !["Enter", " "].includes(event.key)) return;
    if (act(part(event))) {
      event.stopPropagation();
      event.preventDefault();
    }
  });
  model.on("change:html", draw);
  model.on("change:key_names", draw);
  model.on("change:prompt", draw);
  draw();
  el.append(keys, content);
  window.addEventListener("keydown", keep, true); // before the front end hears of it
  return () => window.removeEventListener("keydown", keep, true);
}

export default { render };
