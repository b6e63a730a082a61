// The viewer of the landing page. What models wrote goes in as text (textContent, title), never as markup.
(() => {
  "use strict";
  const WHOSE = { grammar: "the grammar's exact law", first: "generation 1" };
  const SVG = "http://www.w3.org/2000/svg";

  function element(kind, text, ...classes) {
    const made = document.createElement(kind);
    made.textContent = text;
    made.classList.add(...classes.filter(Boolean));
    return made;
  }

  function drawn(kind, attributes) {
    const made = document.createElementNS(SVG, kind);
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    return made;
  }

  function surprise(level, loss) {
    if (level === "5") return "impossible here";
    return level === "6" ? "after something impossible the law has nothing to say" : level && `${loss} nats`;
  }

  function start(viewer) {
    const part = name => viewer.querySelector(`.viewer-${name}`);
    const runs = window.collapseViewer;
    const [runChoice, beginningChoice, lawChoice, slider, play] = ["run", "beginning", "law", "slider", "play"].map(part);
    let timer = 0;

    const run = () => runs[runChoice.selectedIndex];
    const beginning = () => run().beginnings[beginningChoice.selectedIndex];

    function pieces(one) {
      const { levels, losses } = one.surprise[lawChoice.value] || { levels: "", losses: [] };
      return one.pieces.flatMap((piece, at) => {
        const [level, isWord, word] = [levels[at] || "", one.nonwords[at] === "0", piece.trimStart()];
        const made = element("span", word || piece, level && `s${level}`, !isWord && "nonword");
        made.title = surprise(level, losses[at]) + (isWord ? "" : " (no English word)");
        return word ? [piece.slice(0, -word.length), made] : [made]; // the space before a word has no mark
      });
    }

    function curve(now) {
      const { label, values, said } = run().number;
      const low = Math.min(...values), high = Math.max(...values), last = Math.max(1, values.length - 1);
      const points = values.map((value, at) => [6 + (188 * at) / last, 84 - (78 * (value - low)) / (high - low || 1)]);
      const picture = viewer.querySelector("svg");
      picture.setAttribute("aria-label", `${label} by generation: ${said.join(", ")}`);
      picture.replaceChildren(
        drawn("path", { d: "M" + points.map(point => point.join(" ")).join("L") }),
        ...points.map(([cx, cy], at) => drawn("circle", { cx, cy, r: at === now ? 6 : 2.5, class: at === now ? "now" : "" })),
      );
      part("label").textContent = label;
      part("value").textContent = said[now] ?? "–";
    }

    function legend(law) {
      const words = [element("span", "wavy underline", "nonword"), " in no English lexicon."];
      if (!law) return ["No tint: this run recorded no law for this text. ", ...words];
      const scale = [0, 1, 2, 3, 4].map(level => element("span", ["expected", "·", "··", "···", "all but impossible"][level], `s${level}`));
      const beyond = law === "grammar" ? [" ", element("span", "impossible", "s5"), " ", element("span", "after that", "s6")] : [];
      return [`Tinted by how surprising each piece is to ${WHOSE[law]}, given the text before it: `, ...scale.flatMap(step => [step, " "]), ...beyond, " ", ...words];
    }

    function show() {
      const now = Number(slider.value), { text, continuations } = beginning(), one = continuations[now];
      part("generation").textContent = run().generations[now];
      slider.setAttribute("aria-valuetext", `generation ${run().generations[now]}`);
      part("text").replaceChildren(
        element("span", text, "viewer-given"),
        ...(one ? pieces(one) : [element("em", " (this generation wrote nothing here)")]),
        ...(one && one.ended ? [element("span", " ■", "viewer-given")] : one ? [element("span", " …", "viewer-given")] : []),
      );
      curve(now);
      part("legend").replaceChildren(...legend(lawChoice.value));
    }

    function stop() {
      clearInterval(timer);
      timer = 0;
      play.textContent = "Play";
      play.setAttribute("aria-pressed", "false");
    }

    function chooseBeginning() {
      const laws = Object.keys(WHOSE).filter(whose => beginning().continuations.some(one => one && whose in one.surprise));
      lawChoice.replaceChildren(...laws.map(whose => Object.assign(element("option", WHOSE[whose]), { value: whose })));
      lawChoice.parentElement.hidden = laws.length < 2;
      show();
    }

    function chooseRun() {
      beginningChoice.replaceChildren(...run().beginnings.map(({ text }) => element("option", text.replace(/\s+/g, " ") || "(the empty beginning)")));
      slider.max = run().generations.length - 1;
      slider.value = Math.min(slider.value, slider.max);
      chooseBeginning();
    }

    slider.addEventListener("input", () => { stop(); show(); });
    beginningChoice.addEventListener("change", chooseBeginning);
    lawChoice.addEventListener("change", show);
    runChoice.addEventListener("change", () => { stop(); chooseRun(); });
    play.addEventListener("click", () => {
      if (timer) return stop();
      if (slider.value === slider.max) slider.value = 0;
      play.textContent = "Pause";
      play.setAttribute("aria-pressed", "true");
      timer = setInterval(() => {
        slider.value = Number(slider.value) + 1;
        show();
        if (slider.value === slider.max) stop();
      }, 1400);
      show();
    });
    slider.value = 0; // a browser may remember where it was
    runChoice.selectedIndex = 0;
    chooseRun();
  }

  const startAll = () => document.querySelectorAll(".viewer").forEach(start);
  window.collapseViewer ? startAll() : document.addEventListener("DOMContentLoaded", startAll); // when the data, which are deferred, are there
})();
