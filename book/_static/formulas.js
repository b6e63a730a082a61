// The engine that draws formulas has two megabytes: it is loaded when a formula comes near the screen, or is to be printed.
(() => {
  "use strict";
  let asked = false;

  function load() {
    if (asked) return;
    asked = true;
    const script = document.createElement("script");
    script.src = document.querySelector("meta[name='formula-engine']").content;
    document.head.append(script);
  }

  function start() {
    const formulas = document.querySelectorAll(".bd-article .math");
    if (!formulas.length) return;
    const near = new IntersectionObserver(seen => { if (seen.some(one => one.isIntersecting)) load(); }, { rootMargin: "400px" });
    formulas.forEach(formula => near.observe(formula));
    addEventListener("beforeprint", load);
  }

  document.readyState === "loading" ? document.addEventListener("DOMContentLoaded", start) : start();
})();
