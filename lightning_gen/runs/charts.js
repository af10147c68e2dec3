/* ---- what pages share */

const $ = id => document.getElementById(id);
const data = JSON.parse($("data").textContent);

/* What the reader has set outlives the page's own refreshing. */
let settings = {};
try { settings = JSON.parse(sessionStorage.getItem(location.pathname)) || {}; } catch {}
const keep = (name, value) => {
  settings[name] = value;
  try { sessionStorage.setItem(location.pathname, JSON.stringify(settings)); } catch {}
};

for (const time of document.querySelectorAll("time")) {
  const then = new Date(time.dateTime);
  const minutes = Math.round((Date.now() - then) / 6e4);
  time.title = then.toLocaleString();
  time.textContent = minutes < 1 ? "just now" : minutes < 60 ? `${minutes} min ago`
    : minutes < 2880 ? `${Math.round(minutes / 60)} h ago` : then.toLocaleDateString();
  /* Whoever is killed cannot say so. */
  if ($("silent")) $("silent").hidden = minutes < 30;
}
for (const details of document.querySelectorAll("details[id]")) {
  details.open = settings[details.id] || false;
  details.addEventListener("toggle", () => keep(details.id, details.open));
}
for (const button of document.querySelectorAll("button[data-copy]")) {
  button.hidden = !navigator.clipboard;
  button.addEventListener("click", () => navigator.clipboard.writeText(button.dataset.copy).then(() => {
    button.textContent = "Copied";
    setTimeout(() => { button.textContent = "Copy"; }, 1500);
  }, () => {}));
}

const element = (tag, properties, ...children) => {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
};
/* Text that may be broken behind dots, slashes and underscores. */
const breakable = text => text.split(/(?<=[./_])/).flatMap(part => [part, element("wbr", {})]);
const grouped = n => n.toLocaleString("en").replaceAll(",", "\u2009");
const number = v => {
  const size = Math.abs(v);
  if (size !== 0 && (size < 1e-4 || size >= 1e6)) return v.toExponential(2).replace(/\.?0*e\+?/, "e");
  return String(+v.toPrecision(4));
};

/* ---- charts */

const short = s => s >= 1e6 ? `${+(s / 1e6).toPrecision(4)}M` : s >= 1e3 ? `${+(s / 1e3).toPrecision(4)}k` : String(s);
const nice = (low, high, count) => {
  const raw = (high - low) / count, power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].find(m => m * power >= raw * .75) * power;
  const ticks = [];
  for (let k = Math.ceil(low / step - 1e-9); k * step <= high + step * 1e-9; k++) ticks.push(+(k * step).toPrecision(10));
  return ticks;
};
const smoothed = (values, share) => {
  let sum = 0, weight = 0;
  return values.map(v => {
    if (v === null) return null;
    sum = share * sum + (1 - share) * v;
    weight = share * weight + (1 - share);
    return sum / weight;
  });
};
const units = [[86400, "d"], [3600, "h"], [60, "min"], [1, "s"]];
const unit_of = seconds => units.find(([size]) => seconds >= 2 * size) || units.at(-1);
const axis_names = {
  step: { at: s => `step ${grouped(s)}`, ticks: (a, b, n) => nice(a, b, n).filter(Number.isInteger).map(v => [v, short(v)]) },
  kimg: { at: k => `${number(k)} kimg`, ticks: (a, b, n) => nice(a, b, n).map(v => [v, short(v)]) },
  seconds: {
    at: s => { const [size, unit] = unit_of(s); return `${+(s / size).toPrecision(3)} ${unit}`; },
    ticks: (a, b, n) => { const [size, unit] = unit_of(b); return nice(a / size, b / size, n).map(v => [v * size, v ? `${v} ${unit}` : "0"]); },
  },
};
/* From steps to places on another axis, straight between the moments that are known; null where nothing is known. */
const along = (axes, axis) => {
  if (axis === "step") return s => s;
  const from = axes.step, to = axes[axis];
  if (!to || !to.length) return null;
  return s => {
    let a = 0, b = from.length - 1;
    if (s <= from[a]) return from[a] > 0 ? to[a] * s / from[a] : to[a];
    if (s >= from[b]) return to[b];
    while (b - a > 1) { const m = (a + b) >> 1; from[m] <= s ? a = m : b = m; }
    return to[a] + (to[b] - to[a]) * (s - from[a]) / (from[b] - from[a]);
  };
};
const colour_of = line => `var(--c${line.colour % 8})`;
const dashes_of = line => ["", "6 4", "2 4", "9 3 2 3"][Math.floor(line.colour / 8) % 4];
const swatch = line => {
  const made = element("span", {});
  made.innerHTML = `<svg class="swatch"><line x1="0" x2="18" y1="4" y2="4" style="stroke:${colour_of(line)}" stroke-dasharray="${dashes_of(line)}"/></svg>`;
  return made.firstChild;
};
let clips = 0;

/* Lines are {name, colour, axes, x, y, last} and perhaps a band: low and high, or a deviation on either side. */
const make_chart = (title, height, with_legend) => {
  const legend = element("div", { className: "legend" });
  const tip = element("div", { className: "tip", hidden: true });
  const plot = element("div", { className: "plot" });
  const heading = element("h3", { textContent: title });
  const box = element("div", { className: "chart card" }, heading, plot, legend, tip);
  const hidden = new Set(), clip = `clip-${clips++}`;
  let lines = [], place = null;  /* place: from an axis to a pixel, for the pointer */

  const set = new_lines => {
    lines = new_lines.map(line => line.deviation ? { ...line,
      low: line.y.map((v, k) => v === null || line.deviation[k] === null ? null : v - line.deviation[k]),
      high: line.y.map((v, k) => v === null || line.deviation[k] === null ? null : v + line.deviation[k]) } : line);
    legend.replaceChildren(...(with_legend ? lines : []).map(line => {
      const bad = typeof line.last === "string", apart = line.deviation?.at(-1);
      const words = bad ? line.last : number(line.last) + (apart == null ? "" : ` \u00b1 ${number(apart)}`);
      const button = element("button", { type: "button", title: "Show or hide" }, swatch(line), line.name,
        element("b", { className: bad ? "bad" : "", textContent: words }));
      button.addEventListener("click", () => {
        hidden.has(line.name) ? hidden.delete(line.name) : hidden.add(line.name);
        button.classList.toggle("hidden");
        draw();
      });
      return button;
    }));
  };

  const draw = () => {
    const width = plot.clientWidth || 400;
    const log = $("log").checked, share = +$("smooth").value, axis = chosen_axis();
    const usable = v => v !== null && (!log || v > 0);
    const shown = lines.filter(line => !hidden.has(line.name)).map(line => {
      const to = along(line.axes, axis);
      return to && { ...line, at: line.x.map(to), main: share ? smoothed(line.y, share) : line.y };
    }).filter(Boolean);
    const xs = shown.flatMap(line => line.at);
    const ys = shown.flatMap(line => [...line.main, ...(share && !line.low ? line.y : []), ...(line.deviation && !log ? [...line.low, ...line.high] : [])]).filter(usable);
    if (!ys.length) {
      const words = xs.length ? "nothing to show on this scale" : lines.length > hidden.size ? "not known along this axis" : "no lines chosen";
      plot.innerHTML = `<svg viewBox="0 0 ${width} ${height}" style="height:${height}px"><text x="50%" y="50%" text-anchor="middle">${words}</text></svg>`;
      place = null;
      return;
    }
    const to = log ? Math.log10 : v => v, from = log ? v => 10 ** v : v => v;
    const least = list => list.reduce((a, b) => Math.min(a, b)), most = list => list.reduce((a, b) => Math.max(a, b));
    let [x0, x1] = [least(xs), most(xs)], [y0, y1] = [to(least(ys)), to(most(ys))];
    if (x0 === x1) { const wide = axis === "step" ? 1 : Math.abs(x1) * .1 || 1; x0 -= wide; x1 += wide; }
    const pad = (y1 - y0) * .06 || Math.abs(y1) * .1 || 1;
    y0 -= pad; y1 += pad;
    let yticks = nice(y0, y1, Math.max(4, height / 70)).map(from);
    if (log && y1 - y0 > 1.2) {
      yticks = [];
      for (let k = Math.ceil(y0), every = Math.ceil((y1 - y0) / 6); k <= y1; k += every) yticks.push(10 ** k);
    } else if (log) yticks = nice(from(y0), from(y1), 4).filter(v => v > 0);
    const labels = yticks.map(number), left = 12 + 6.4 * Math.max(...labels.map(l => l.length)), right = 10, top = 8, bottom = 22;
    const X = s => left + (s - x0) / (x1 - x0) * (width - left - right);
    const Y = v => top + (y1 - to(v)) / (y1 - y0) * (height - top - bottom);
    let svg = "";
    yticks.forEach((v, k) => {
      const y = Y(v).toFixed(1);
      svg += `<line class="rule" x1="${left}" x2="${width - right}" y1="${y}" y2="${y}"/><text x="${left - 7}" y="${y}" dy=".35em" text-anchor="end">${labels[k]}</text>`;
    });
    for (const [s, words] of axis_names[axis].ticks(x0, x1, Math.max(2, Math.min(7, width / 90)))) {
      const x = X(s), anchor = x > width - 28 ? "end" : "middle";
      svg += `<text x="${Math.min(x, width - 2).toFixed(1)}" y="${height - 5}" text-anchor="${anchor}">${words}</text>`;
    }
    svg += `<clipPath id="${clip}"><rect x="${left - 4}" y="${top - 4}" width="${width - left - right + 8}" height="${height - top - bottom + 8}"/></clipPath><g clip-path="url(#${clip})">`;
    const path = (line, values) => {
      let d = "", pen = "M";
      values.forEach((v, k) => {
        if (!usable(v)) { pen = "M"; return; }
        d += `${pen}${X(line.at[k]).toFixed(1)} ${Y(v).toFixed(1)}`;
        pen = "L";
      });
      return d;
    };
    for (const line of shown) {
      const colour = colour_of(line), dashes = dashes_of(line);
      if (line.low) {
        const edge = (values, k) => `${X(line.at[k]).toFixed(1)} ${Y(log ? Math.max(values[k], from(y0)) : values[k]).toFixed(1)}`;
        const there = line.x.map((_, k) => k).filter(k => line.low[k] !== null && usable(line.high[k]));
        if (there.length) svg += `<path class="band" style="fill:${colour}" d="M${there.map(k => edge(line.high, k)).join("L")}L${there.reverse().map(k => edge(line.low, k)).join("L")}Z"/>`;
        if (there.length === 1 && line.deviation) svg += `<path style="stroke:${colour};opacity:.5" d="M${edge(line.low, there[0])}L${edge(line.high, there[0])}"/>`;
      }
      if (share && !line.low) svg += `<path class="faint" style="stroke:${colour}" d="${path(line, line.y)}"/>`;
      svg += `<path style="stroke:${colour}" stroke-dasharray="${dashes}" d="${path(line, line.main)}"/>`;
      /* A point between two gaps is still a point, and few points are seen one by one. */
      const few = line.main.filter(usable).length <= 12;
      line.main.forEach((v, k) => {
        const alone = usable(v) && !usable(line.main[k - 1] ?? null) && !usable(line.main[k + 1] ?? null);
        if (usable(v) && (alone || few)) svg += `<circle cx="${X(line.at[k]).toFixed(1)}" cy="${Y(v).toFixed(1)}" r="${alone ? 3.4 : 2.3}" style="fill:${colour}"/>`;
      });
    }
    plot.innerHTML = `<svg viewBox="0 0 ${width} ${height}" style="height:${height}px">${svg}</g><line class="cross" y1="${top}" y2="${height - bottom}" hidden></line></svg>`;
    place = { X, x0, x1, left, right, width, shown, axis };
  };

  const hover = event => {
    if (!place) return;
    const { X, x0, x1, left, right, width, shown, axis } = place;
    const pointer = event.clientX - plot.getBoundingClientRect().left;
    const where = x0 + (pointer - left) / (width - left - right) * (x1 - x0);
    const nearest = line => {
      let a = 0, b = line.at.length - 1;
      while (b - a > 1) { const m = (a + b) >> 1; line.at[m] < where ? a = m : b = m; }
      return Math.abs(line.at[a] - where) <= Math.abs(line.at[b] - where) ? a : b;
    };
    let found = shown.filter(line => line.at.length).map(line => ({ line, k: nearest(line) }));
    const at = found.map(({ line, k }) => line.at[k]).sort((a, b) => Math.abs(a - where) - Math.abs(b - where))[0];
    const cross = plot.querySelector(".cross");
    cross.setAttribute("x1", X(at)); cross.setAttribute("x2", X(at)); cross.removeAttribute("hidden");
    const more = found.length - 14;
    if (more > 0) found = found.slice(0, 14);
    tip.replaceChildren(element("div", { textContent: axis_names[axis].at(at) }), ...found.map(({ line, k }) => {
      const value = line.main[k], apart = line.deviation?.[k];
      const words = value === null ? "\u2013" : number(value) + (apart == null ? "" : ` \u00b1 ${number(apart)}`);
      return element("div", {}, swatch(line), line.name, element("b", { textContent: words }));
    }), ...(more > 0 ? [element("div", { textContent: `and ${more} more` })] : []));
    tip.hidden = false;
    const x = plot.offsetLeft + X(at);
    tip.style.left = `${x + 14 + tip.offsetWidth > box.clientWidth ? Math.max(4, x - 14 - tip.offsetWidth) : x + 14}px`;
  };
  plot.addEventListener("pointermove", hover);
  plot.addEventListener("pointerdown", hover);
  plot.addEventListener("pointerleave", () => { tip.hidden = true; plot.querySelector(".cross")?.setAttribute("hidden", ""); });
  return { box, heading, set, draw };
};

/* Controls of all charts of a page: scale, smoothing, and what runs along the bottom. */
const chosen_axis = () => $("axis").value;
const with_controls = (holder, redraw, axes) => {
  for (const option of $("axis").options) option.hidden = option.disabled = !axes.includes(option.value);
  $("axis").value = axes.includes(settings.axis) ? settings.axis : "step";
  $("log").checked = settings.log || false;
  $("smooth").value = settings.smooth || 0;
  $("axis").addEventListener("change", () => { keep("axis", $("axis").value); redraw(); });
  $("log").addEventListener("change", () => { keep("log", $("log").checked); redraw(); });
  $("smooth").addEventListener("input", () => { keep("smooth", +$("smooth").value); redraw(); });
  let width = holder.clientWidth;
  redraw();
  new ResizeObserver(() => {
    if (holder.clientWidth !== width) { width = holder.clientWidth; requestAnimationFrame(redraw); }
  }).observe(holder);
};
