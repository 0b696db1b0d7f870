"""The style sheet of report.html: light and dark, from a phone to a wide screen."""

STYLE = """
:root { color-scheme: light dark;
  --ink: light-dark(#1c2430, #e4e8ee); --soft: light-dark(#5b6675, #9aa6b5);
  --page: light-dark(#f6f7f9, #12161c); --card: light-dark(#ffffff, #1a2029);
  --line: light-dark(#dfe3e8, #2d3641); --good: light-dark(#13795b, #4cc79a);
  --bad: light-dark(#b8461b, #ff9466); --accent: light-dark(#1769a5, #6db7ee); }
* { box-sizing: border-box; }
body { overflow-wrap: anywhere; }
body { margin: 0 auto; padding: 2.5rem clamp(1rem, 4vw, 3rem) 5rem; max-width: 76rem;
  background: var(--page); color: var(--ink);
  font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
h1 { margin: 0; font-size: clamp(1.8rem, 5vw, 2.6rem); line-height: 1.15;
  letter-spacing: -0.02em; }
h2 { margin: 0 0 .75rem; font-size: 1.25rem; letter-spacing: -0.01em; }
header p { margin: .4rem 0 0; color: var(--soft); max-width: 46rem; }
p { max-width: 46rem; margin: .3rem 0 .9rem; }
section dl { display: flex; flex-wrap: wrap; gap: .5rem 2rem; margin: 0 0 1rem; }
section details > .grid { margin-top: .8rem; }
.wide { margin-bottom: 1.2rem; }
.printed { white-space: pre; overflow-x: auto; overflow-wrap: normal; font-size: .8rem; }
header dl { display: flex; flex-wrap: wrap; gap: 1rem 2.5rem; margin: 1.6rem 0; }
dt { color: var(--soft); font-size: .8rem; }
dd { margin: 0; font-size: 1.5rem; font-weight: 600; font-variant-numeric: tabular-nums; }
nav { display: flex; flex-wrap: wrap; gap: .3rem 1.1rem; padding: .7rem 0; font-size: .875rem;
  border-block: 1px solid var(--line); }
a { color: var(--accent); text-decoration: none; }
a:hover { text-decoration: underline; }
section { margin-top: 1.5rem; padding: clamp(1rem, 3vw, 1.75rem); background: var(--card);
  border: 1px solid var(--line); border-radius: .75rem; scroll-margin-top: 1rem; }
figure { margin: 0; min-width: 0; }
figcaption { font-size: .875rem; font-weight: 600; margin-bottom: .2rem; }
.picture { margin: .4rem 0 1.4rem; }
.picture img { display: block; max-width: 100%; height: auto; padding: .5rem; background: #fff;
  border-radius: .4rem; }
.picture figcaption { margin: .7rem 0 0; font-weight: 400; max-width: 46rem; }
.grid { display: grid; gap: 1.5rem; grid-template-columns: repeat(auto-fit,
  minmax(min(100%, 19rem), 1fr)); }
.grid svg { display: block; width: 100%; height: auto; color: var(--ink); }
svg text { font-family: inherit !important; }
.grid svg text { fill: currentColor !important; }
ul { list-style: none; margin: 0 0 1rem; padding: 0; display: grid; gap: .75rem; }
.finding { padding: .8rem 1rem; border-radius: .5rem; border-left: .3rem solid var(--bad);
  background: color-mix(in srgb, var(--bad) 9%, transparent); }
.finding.fine { border-color: var(--good);
  background: color-mix(in srgb, var(--good) 9%, transparent); }
.finding p { margin: .15rem 0 0; }
.finding strong::first-letter { text-transform: uppercase; }
.finding strong { display: inline-block; }
.where { unicode-bidi: isolate; margin-left: .6rem; color: var(--soft); font-size: .9rem; }
.advice::before { content: "Try: "; font-weight: 600; }
.advice { color: var(--ink); }
.chips { display: flex; flex-wrap: wrap; gap: .25rem 1rem; margin-bottom: 1rem;
  font-size: .85rem; }
.chips i { display: inline-block; width: .8rem; height: .8rem; border-radius: .2rem;
  margin-right: .4rem; vertical-align: -.05rem; }
.wide { overflow-x: auto; }
.wide svg { display: block; max-width: max(100%, 48rem); height: auto; }
table { border-collapse: collapse; font-size: .875rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .9rem .3rem 0; text-align: left; border-bottom: 1px solid var(--line);
  white-space: nowrap; }
th { color: var(--soft); font-weight: 500; }
.confusion th, .confusion td { border: 0; padding: 0 .35rem; min-width: 2.1rem; height: 2.1rem;
  text-align: center; }
.confusion td[style] { border-radius: .25rem;
  background: color-mix(in srgb, var(--bad) calc(var(--heat) * 75%), var(--card)); }
.confusion td.right { color: var(--good); font-weight: 600; }
.confusion tbody th { text-align: right; }
.tiles { display: grid; gap: .9rem; grid-template-columns: repeat(auto-fill,
  minmax(5.5rem, 1fr)); }
.tiles.small { gap: .4rem; grid-template-columns: repeat(auto-fill, minmax(3rem, 1fr)); }
.tiles img { display: block; width: 100%; image-rendering: pixelated; border-radius: .25rem;
  border: 1px solid var(--line); }
.tiles figcaption { margin: .25rem 0 0; font-size: .78rem; line-height: 1.3; font-weight: 500; }
.tiles small { display: block; color: var(--soft); font-size: .75rem; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; padding: .8rem 1rem;
  border-radius: .5rem; background: var(--page); border: 1px solid var(--line); }
code { font: .9em ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
.two { display: flex; flex-wrap: wrap; gap: 1rem 4rem; }
details { margin-top: 1rem; }
summary { cursor: pointer; color: var(--accent); font-size: .9rem; }
@media print { body { max-width: none; } nav { display: none; } section { break-inside: avoid; } }
"""
