// Interactive figures, drawn from that part of Plotly's figure JSON which the figures of this book use, without Plotly's five megabytes.
// tests/book/test_chart.py checks that they use no other part. Words go in as text, never as markup; colours of axes are the theme's.
(() => {
  "use strict";
  const SVG = "http://www.w3.org/2000/svg";
  const FONT = 13, NARROW = 520, LETTER = 7.2; // pixels: of text, of a plot with fewer ticks, of a letter's mean width
  const DASHES = { dash: "7 4", dot: "2 4" };
  const SHAPES = {
    circle: r => `M${-r},0a${r},${r} 0 1,0 ${2 * r},0a${r},${r} 0 1,0 ${-2 * r},0`,
    square: r => `M${-r},${-r}h${2 * r}v${2 * r}h${-2 * r}z`,
    diamond: r => `M0,${-1.3 * r}L${1.3 * r},0L0,${1.3 * r}L${-1.3 * r},0z`,
    "triangle-up": r => `M0,${-1.2 * r}L${1.1 * r},${0.8 * r}H${-1.1 * r}z`,
    "triangle-down": r => `M0,${1.2 * r}L${1.1 * r},${-0.8 * r}H${-1.1 * r}z`,
    cross: r => `M${-r},${-r / 3}h${(2 * r) / 3}v${(-2 * r) / 3}h${(2 * r) / 3}v${(2 * r) / 3}h${(2 * r) / 3}v${(2 * r) / 3}h${(-2 * r) / 3}v${(2 * r) / 3}h${(-2 * r) / 3}v${(-2 * r) / 3}h${(-2 * r) / 3}z`,
  };
  let charts = 0;

  const element = (kind, attributes = {}, ...inside) => {
    const made = document.createElement(kind);
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    made.append(...inside);
    return made;
  };
  const drawn = (kind, attributes, ...inside) => {
    const made = document.createElementNS(SVG, kind);
    for (const [name, value] of Object.entries(attributes)) if (value !== undefined && value !== null) made.setAttribute(name, value);
    made.append(...inside);
    return made;
  };
  const letters = text => String(text ?? "").replace(/&#(\d+);/g, (_, code) => String.fromCodePoint(Number(code)));
  const finite = value => typeof value === "number" && Number.isFinite(value);
  const short = value => (typeof value === "number" ? Number(value.toPrecision(5)).toLocaleString("en", { maximumSignificantDigits: 5 }) : letters(value));
  const set = (object, path, value) => {
    const names = path.split("."), last = names.pop();
    names.reduce((inner, name) => (inner[name] ??= {}), object)[last] = value;
  };

  // ---- axes: from values to pixels
  function scale(spec, values, strings, [from, to], withZero, edge) {
    const log = spec.type === "log", place = value => (strings ? strings.indexOf(value) : log ? (value > 0 ? Math.log10(value) : NaN) : value);
    let [low, high] = spec.range && !spec.autorange ? spec.range : [NaN, NaN];
    if (!finite(low)) {
      const placed = [...values.map(place).filter(Number.isFinite), ...(withZero && !log ? [0] : [])];
      low = Math.min(...placed), high = Math.max(...placed);
      if (!placed.length) [low, high] = [0, 1];
      const margin = edge ?? 0.05 * (high - low || Math.abs(high) || 1);
      [low, high] = [withZero && low === 0 ? 0 : low - margin, high + margin];
    }
    const at = value => from + ((place(value) - low) / (high - low)) * (to - from);
    return { at, low, high, log, strings, zero: from + ((Math.max(low, Math.min(high, 0)) - low) / (high - low)) * (to - from) };
  }

  function ticks({ low, high, log, strings }, wanted, wholes) {
    if (strings) return strings.map(name => [name, letters(name)]);
    if (log) {
      const first = Math.ceil(low - 1e-9), last = Math.floor(high + 1e-9), step = Math.max(1, Math.ceil((last - first + 1) / wanted));
      const within = last - first >= 2 ? [1] : last - first >= 1 ? [1, 3] : [1, 2, 5];
      const found = [];
      for (let power = Math.floor(low); power <= last; power++)
        for (const factor of within) {
          const value = factor * 10 ** power, exponent = Math.log10(value);
          if (exponent < low - 1e-9 || exponent > high + 1e-9 || (within.length === 1 && (power - first) % step)) continue;
          const plain = power >= -3 && power <= 4;
          found.push([value, plain ? short(value) : factor === 1 ? { base: "10", power } : { base: `${factor}·10`, power }]);
        }
      return found;
    }
    let step = 10 ** Math.floor(Math.log10((high - low) / wanted));
    step *= [1, 2, 5, 10].find(factor => (high - low) / (step * factor) <= wanted);
    if (wholes) step = Math.max(1, Math.round(step));
    const digits = Math.max(0, -Math.floor(Math.log10(step) + 1e-9)), found = [];
    for (let n = Math.ceil(low / step - 1e-9); n * step <= high + 1e-9 * step; n++) {
      const value = n * step;
      found.push([value, (value === 0 ? 0 : value).toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits })]);
    }
    return found;
  }

  function label(text, attributes) {
    const made = drawn("text", attributes);
    if (typeof text === "string") made.append(text);
    else made.append(text.base, drawn("tspan", { dy: "-0.45em", "font-size": "78%" }, String(text.power)));
    return made;
  }

  // ---- one figure
  function start(holder) {
    const { data, layout } = JSON.parse(holder.querySelector("script").textContent);
    const number = ++charts, hidden = new Set();
    const controls = element("div", { class: "controls" }), legend = element("ul", { class: "chart-legend" });
    const tip = element("div", { class: "chart-tip", hidden: "" }), plot = element("div", { class: "chart-plot" }, tip);
    holder.append(controls, legend, plot);
    let points = [], setting = "", width = 0;

    function change([traces, of_layout = {}]) {
      for (const [path, values] of Object.entries(traces)) data.forEach((trace, index) => set(trace, path, values[index % values.length]));
      for (const [path, value] of Object.entries(of_layout)) {
        set(layout, path, value);
        const [axis, what] = path.split(".");
        if (what === "autorange" && value) delete layout[axis].range;
      }
    }

    function draw() {
      width = plot.clientWidth || width || 640;
      const narrow = width < NARROW, height = narrow ? 330 : 400;
      const shown = data.filter(trace => !hidden.has(trace.legendgroup || trace.name || trace));
      const named = data.some(trace => (trace.x || []).some(value => typeof value === "string"));
      const strings = named ? [...new Set(data.flatMap(trace => trace.x || []))] : null;
      const bars = shown.filter(trace => trace.type === "bar"), stacked = layout.barmode === "stack";
      const on = (trace, axis) => (trace.yaxis === "y2") === (axis === "y2");
      const tops = {}; // of stacked bars
      const heights = axis => shown.filter(trace => on(trace, axis)).flatMap(trace => {
        const { array = [], arrayminus = [] } = trace.error_y || {};
        return (trace.y || []).flatMap((y, at) => {
          if (!finite(y)) return [];
          if (trace.type === "bar" && stacked) return [(tops[trace.x[at]] = (tops[trace.x[at]] || 0) + y)];
          return [y, y + (array[at] || 0), y - ((arrayminus.length ? arrayminus[at] : array[at]) || 0)];
        });
      });
      const second = layout.yaxis2 && data.some(trace => trace.yaxis === "y2");
      const top = 26, bottom = height - 46;
      const spec = axis => layout[axis === "y2" ? "yaxis2" : "yaxis"] || {};
      const vertical = axis => scale(spec(axis), heights(axis), null, [bottom, top], bars.some(bar => on(bar, axis)) || spec(axis).rangemode === "tozero");
      const y = vertical("y"), y2 = second && vertical("y2");
      const yTicks = ticks(y, narrow ? 6 : 7), y2Ticks = second ? ticks(y2, narrow ? 6 : 7) : [];
      const room = found => 14 + LETTER * Math.max(1, ...found.map(([, text]) => (typeof text === "string" ? text.length : text.base.length + 1.5)));
      const left = room(yTicks), right = width - (second ? room(y2Ticks) : 14);
      const across = shown.flatMap(trace => trace.x || []);
      const wholes = !strings && across.every(Number.isInteger);
      const x = scale(layout.xaxis || {}, across, strings, [left, right], false, strings ? 0.6 : bars.length ? 0.6 : undefined);
      const xTicks = ticks(x, Math.max(2, Math.floor((right - left) / (narrow ? 55 : 80))), wholes && !x.log);

      const back = drawn("g", { class: "chart-axes" }), marks = drawn("g", { class: "chart-marks", "clip-path": `url(#chart-clip-${number})` });
      back.append(drawn("line", { x1: left, x2: left, y1: top, y2: bottom }), drawn("line", { x1: left, x2: right, y1: bottom, y2: bottom }));
      for (const [value, text] of yTicks) {
        back.append(drawn("line", { class: "chart-grid", x1: left, x2: right, y1: y.at(value), y2: y.at(value) }));
        back.append(label(text, { x: left - 6, y: y.at(value) + 4, "text-anchor": "end" }));
      }
      for (const [value, text] of y2Ticks) back.append(label(text, { x: right + 6, y: y2.at(value) + 4 }));
      for (const [value, text] of xTicks) {
        back.append(drawn("line", { x1: x.at(value), x2: x.at(value), y1: bottom, y2: bottom + 4 }));
        back.append(label(text, { x: x.at(value), y: bottom + 18, "text-anchor": "middle" }));
      }
      const title = axis => letters(((layout[axis] || {}).title || {}).text);
      back.append(label(title("xaxis"), { x: (left + right) / 2, y: height - 8, "text-anchor": "middle" }));
      back.append(label(title("yaxis"), { x: 0, y: 13 }));
      if (second) back.append(label(title("yaxis2"), { x: width, y: 13, "text-anchor": "end" }));

      points = [];
      const ends = {}, xs = [...new Set(bars.flatMap(bar => bar.x))], gap = strings || xs.length < 2 ? 1 : Math.min(...xs.slice(1).map((v, i) => Math.abs(v - xs[i])));
      const slot = Math.abs(x.at(strings ? strings[0] : (xs[0] ?? 0)) - (strings ? x.at(strings[0]) + (right - left) / (x.high - x.low) : x.at((xs[0] ?? 0) + gap)));
      shown.forEach(trace => {
        const axis = trace.yaxis === "y2" ? y2 : y, { line = {}, marker = {}, error_y = {} } = trace, colour = marker.color || line.color;
        const placed = (trace.x || []).map((value, at) => [x.at(value), finite(trace.y[at]) ? axis.at(trace.y[at]) : NaN, at]).filter(([px]) => Number.isFinite(px));
        if (trace.type === "bar") {
          const thick = (0.8 * slot) / (stacked ? 1 : bars.length), shift = stacked ? -thick / 2 : -0.4 * slot + bars.indexOf(trace) * thick;
          for (const [px, , at] of placed) {
            const before = stacked ? ends[trace.x[at]] || 0 : 0, after = (ends[trace.x[at]] = before + (trace.y[at] || 0));
            const [base, end] = stacked ? [axis.at(before), axis.at(after)] : [axis.zero, axis.at(trace.y[at])];
            const look = (marker.pattern || {}).shape ? { "fill-opacity": 0.55, stroke: colour, "stroke-width": 1.5 } : {};
            marks.append(drawn("rect", { class: "chart-bar", x: px + shift, y: Math.min(base, end), width: 0.96 * thick, height: Math.abs(base - end), fill: colour, ...look }));
            points.push({ px: px + shift + thick / 2, py: (base + end) / 2, trace, at });
          }
          return;
        }
        const mode = trace.mode || "lines";
        if (mode.includes("lines")) {
          let path = "", pen = "M";
          for (const [px, py] of placed) {
            if (Number.isFinite(py)) path += `${pen}${px.toFixed(1)},${py.toFixed(1)}`, (pen = "L");
            else pen = "M";
          }
          marks.append(drawn("path", { class: "chart-line", d: path, stroke: colour, "stroke-width": line.width || 2, "stroke-dasharray": DASHES[line.dash] }));
        }
        const { array = [], arrayminus = [] } = error_y;
        for (const [px, py, at] of placed) {
          if (!Number.isFinite(py)) continue;
          if (array[at]) {
            const low = axis.at(trace.y[at] - ((arrayminus.length ? arrayminus[at] : array[at]) || 0));
            if (Number.isFinite(low)) marks.append(drawn("line", { x1: px, x2: px, y1: low, y2: axis.at(trace.y[at] + array[at]), stroke: colour }));
          }
          if (mode.includes("markers"))
            marks.append(drawn("path", { class: "chart-dot", d: (SHAPES[marker.symbol] || SHAPES.circle)((marker.size || 7) / 2), transform: `translate(${px.toFixed(1)},${py.toFixed(1)})`, fill: colour }));
          if (py > top - 2 && py < bottom + 2) points.push({ px, py, trace, at });
        }
      });
      const names = [...new Set(shown.filter(trace => trace.name).map(trace => letters(trace.name)))].slice(0, 8).join(", ");
      const about = `${title("yaxis")} against ${title("xaxis")}${setting && `, ${setting}`}${names && `: ${names}`}`;
      const clip = drawn("clipPath", { id: `chart-clip-${number}` }, drawn("rect", { x: left - 5, y: top - 5, width: right - left + 10, height: bottom - top + 10 }));
      const picture = drawn("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": about, "font-size": FONT }, drawn("defs", {}, clip), back, marks);
      const old = plot.querySelector("svg");
      old ? old.replaceWith(picture) : plot.prepend(picture);
      list();
    }

    function list() {
      const wanted = layout.showlegend === false ? [] : data.filter(trace => trace.showlegend !== false && trace.name && (trace.x || []).length);
      const entries = wanted.length === 1 && layout.showlegend !== true && !wanted[0].showlegend ? [] : wanted;
      const focused = [...legend.querySelectorAll("button")].indexOf(document.activeElement);
      const heading = ((layout.legend || {}).title || {}).text;
      legend.replaceChildren(
        ...(entries.length && heading ? [element("li", {}, `${letters(heading)}:`)] : []),
        ...entries.map(trace => {
          const { line = {}, marker = {} } = trace, colour = marker.color || line.color, key = trace.legendgroup || trace.name;
          const swatch = drawn("svg", { viewBox: "0 0 24 12", width: 24, height: 12, "aria-hidden": "true", class: "chart-marks" });
          if (trace.type === "bar") swatch.append(drawn("rect", { x: 5, y: 1, width: 14, height: 10, fill: colour, "fill-opacity": (marker.pattern || {}).shape ? 0.55 : 1 }));
          else {
            if ((trace.mode || "lines").includes("lines")) swatch.append(drawn("line", { x1: 0, x2: 24, y1: 6, y2: 6, stroke: colour, "stroke-width": 2, "stroke-dasharray": DASHES[line.dash] }));
            if ((trace.mode || "").includes("markers")) swatch.append(drawn("path", { d: (SHAPES[marker.symbol] || SHAPES.circle)(3.5), transform: "translate(12,6)", fill: colour }));
          }
          const button = element("button", { type: "button", "aria-pressed": String(!hidden.has(key)), title: "show or hide" }, swatch, letters(trace.name));
          button.addEventListener("click", () => {
            hidden.has(key) ? hidden.delete(key) : hidden.add(key);
            draw();
          });
          return element("li", {}, button);
        }),
      );
      if (focused >= 0) legend.querySelectorAll("button")[focused]?.focus();
    }

    function said({ trace, at }) {
      const value = { "fullData.name": trace.name, x: trace.x[at], y: trace.y[at], customdata: (trace.customdata || [])[at] };
      const [main, extra = ""] = (trace.hovertemplate || "%{fullData.name}<br>%{x}: %{y}").split(/<extra>(.*?)<\/extra>/);
      const words = main.replace(/%\{([\w.]+)[^}]*\}/g, (_, name) => short(value[name] ?? ""));
      return (extra ? `${extra}\n` : "") + words.replaceAll("<br>", "\n").trim();
    }

    function point(event) {
      const box = plot.getBoundingClientRect(), [px, py] = [event.clientX - box.left, event.clientY - box.top];
      const far = one => Math.hypot(one.px - px, one.py - py);
      const nearest = points.reduce((best, one) => (!best || far(one) < far(best) ? one : best), null);
      tip.hidden = !nearest || far(nearest) > 40;
      if (tip.hidden) return;
      tip.textContent = said(nearest);
      tip.style.left = `${Math.max(0, Math.min(nearest.px + 10, width - tip.offsetWidth))}px`;
      tip.style.top = `${Math.max(0, nearest.py - tip.offsetHeight - 8)}px`;
    }

    // ---- its knob and its list of views
    for (const { steps, active = 0, currentvalue } of layout.sliders || []) {
      const knob = currentvalue.prefix.replace(/: $/, ""), now = element("span", { class: "controls-setting" }), slider = element("input", { type: "range", min: 0, max: steps.length - 1, step: 1, value: active, autocomplete: "off" });
      const choose = () => {
        const step = steps[Number(slider.value)];
        now.textContent = step.label;
        setting = `${knob} ${step.label}`;
        slider.setAttribute("aria-valuetext", step.label);
        change(step.args);
        draw();
      };
      slider.value = active;
      slider.addEventListener("input", () => { stop(); choose(); });
      controls.append(element("label", {}, `${knob}: `, now, slider));
      let timer = 0;
      const play = element("button", { type: "button" }, "Play");
      const stop = () => {
        clearInterval(timer);
        timer = 0;
        play.textContent = "Play";
      };
      play.addEventListener("click", () => {
        if (timer) return stop();
        if (slider.value === slider.max) slider.value = 0;
        play.textContent = "Pause";
        timer = setInterval(() => {
          slider.value = Number(slider.value) + 1;
          choose();
          if (slider.value === slider.max) stop();
        }, 900);
        choose();
      });
      if (/^generation/.test(knob)) controls.append(play);
      choose();
    }
    for (const { buttons } of layout.updatemenus || []) {
      const list = element("select", {}, ...buttons.map(button => element("option", {}, letters(button.label))));
      list.addEventListener("change", () => {
        setting = buttons[list.selectedIndex].label;
        change(buttons[list.selectedIndex].args);
        if ((layout.title || {}).text !== undefined) heading.textContent = letters(layout.title.text);
        draw();
      });
      list.selectedIndex = 0; // a browser may remember where it was
      const heading = element("span", { class: "chart-title" }, letters((layout.title || {}).text || ""));
      controls.append(element("label", {}, "Show ", list), heading);
    }
    if (!controls.children.length) controls.remove();
    plot.addEventListener("pointermove", point);
    plot.addEventListener("pointerdown", point);
    plot.addEventListener("pointerleave", () => { tip.hidden = true; });
    new ResizeObserver(() => { if (plot.clientWidth && plot.clientWidth !== width) draw(); }).observe(plot);
    draw();
  }

  const startAll = () => document.querySelectorAll(".chart").forEach(start);
  document.readyState === "loading" ? document.addEventListener("DOMContentLoaded", startAll) : startAll();
})();
