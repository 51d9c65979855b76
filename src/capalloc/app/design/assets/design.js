// What the page does without the server: it copies code, keeps the address up to date and names its controls.
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
    link: function (query) {
      if (typeof query === "string") {
        window.history.replaceState(null, "", window.location.pathname + (query ? "?" + query : ""));
      }
      return window.dash_clientside.no_update;
    },
  },
});

// Dash gives its controls no name for those who do not see the label above them.
new MutationObserver(function () {
  for (const field of document.querySelectorAll("[data-label]")) {
    for (const part of field.querySelectorAll("[role=slider], input[type=number], [role=listbox]")) {
      if (!part.hasAttribute("aria-label")) part.setAttribute("aria-label", field.dataset.label);
    }
    for (const part of field.querySelectorAll("button[aria-labelledby]")) {
      const names = part.id + "-label " + part.id + "-value";
      if (part.getAttribute("aria-labelledby") !== names) part.setAttribute("aria-labelledby", names);
    }
  }
}).observe(document.documentElement, { childList: true, subtree: true });
