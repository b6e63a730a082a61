// A page is printed as by day, and with the answers that are folded on the screen; afterwards it is as it was.
(() => {
  "use strict";
  const root = document.documentElement.dataset;
  let theme = "", opened = [];
  addEventListener("beforeprint", () => {
    theme = root.theme;
    root.theme = "light";
    opened = [...document.querySelectorAll("details.sd-dropdown:not([open])")];
    for (const fold of opened) fold.open = true;
  });
  addEventListener("afterprint", () => {
    root.theme = theme;
    for (const fold of opened) fold.open = false;
  });
})();
