// What the theme leaves without a name or a landmark, for those who have a page read to them.
(() => {
  "use strict";
  function start() {
    const sidebar = document.querySelector("#pst-primary-sidebar");
    if (sidebar) {
      sidebar.setAttribute("role", "complementary");
      sidebar.setAttribute("aria-label", "Book");
    }
    for (const summary of document.querySelectorAll("summary:has(> .toctree-toggle)"))
      summary.setAttribute("aria-label", `Pages under ${summary.closest("li").querySelector("a").textContent.trim()}`);
  }
  document.readyState === "loading" ? document.addEventListener("DOMContentLoaded", start) : start();
})();
