// What the page does without the server: it copies code, keeps the address up to date and names its controls.
async function picture(id, format, scale) {
  const drawn = document.querySelector("#" + id + " .js-plotly-plot");
  // The file has colours of its own: those of the page's style sheet stay behind.
  const layout = Object.assign({}, drawn.layout, { font: Object.assign({}, drawn.layout.font, { color: "#1b1f24" }), paper_bgcolor: "#ffffff" });
  await window.Plotly.downloadImage({ data: drawn.data, layout: layout }, { format: format, filename: "capacity", width: 800, height: 600, scale: scale });
  return "Saved capacity." + format + ".";
}

window.dash_clientside = Object.assign({}, window.dash_clientside, {
  design: {
    copy: async function (clicks, text) {
      try {
        await navigator.clipboard.writeText(text);
        return "Copied.";
      } catch (error) {
        return "The browser does not allow it: select the code and copy it.";
      }
    },
    save: function (clicks, text) {
      const link = document.createElement("a");
      link.href = URL.createObjectURL(new Blob([text], { type: "text/x-python" }));
      link.download = "network.py";
      link.click();
      setTimeout(function () { URL.revokeObjectURL(link.href); }, 10000);
      return "Saved network.py.";
    },
    png: function (clicks, id) { return picture(id, "png", 2); },
    svg: function (clicks, id) { return picture(id, "svg", 1); },
    link: function (query) {
      if (typeof query === "string") {
        window.history.replaceState(null, "", window.location.pathname + (query ? "?" + query : ""));
      }
      return window.dash_clientside.no_update;
    },
  },
});

// A number out of range is told beside its field by the style sheet. Dash would show the nearest one and work with another:
// it does not hear of it.
for (const kind of ["input", "change", "keydown", "blur", "focusout"]) {
  document.addEventListener(kind, function (event) {
    const part = event.target;
    if (!(part instanceof HTMLInputElement) || part.type !== "number" || !part.closest(".field") || part.validity.valid) return;
    if (kind !== "keydown" || event.key === "Enter") event.stopImmediatePropagation();
  }, true);
}

// Dash gives its controls no name for those who do not see the label above them.
new MutationObserver(function () {
  for (const field of document.querySelectorAll("[data-label]")) {
    for (const part of field.querySelectorAll("[role=slider], input[type=number], input[type=text], [role=listbox]")) {
      if (!part.hasAttribute("aria-label")) part.setAttribute("aria-label", field.dataset.label);
    }
    for (const part of field.querySelectorAll("button[aria-labelledby]")) {
      const names = part.id + "-label " + part.id + "-value";
      if (part.getAttribute("aria-labelledby") !== names) part.setAttribute("aria-labelledby", names);
    }
  }
}).observe(document.documentElement, { childList: true, subtree: true });
