"""The report's style sheet: two colour schemes, paper, and screens of any width."""

from __future__ import annotations

# Series colours stand at least 3:1 against their background and differ for colour-blind eyes; marks differ in
# shape as well. Heat colours run from yellow (few bits) to dark violet in both schemes, lightness falling all the way.
LIGHT = {
    "bg": "#ffffff", "card": "#f6f7f8", "text": "#1b1f23", "quiet": "#57606a", "rule": "#d0d7de", "link": "#0a58a8",
    "s0": "#0072b2", "s1": "#cc5500", "s2": "#007a5a", "s3": "#b0508f", "s4": "#8a6300", "s5": "#3087bd",
    "s6": "#5b6066", "s7": "#7a3fb5", "s8": "#a01c2d",
}  # fmt: skip
DARK = {
    "bg": "#14171a", "card": "#1d2125", "text": "#e6e9ec", "quiet": "#a3adb7", "rule": "#3a4148", "link": "#7cc0f5",
    "s0": "#56b4e9", "s1": "#f08a3c", "s2": "#2fc39a", "s3": "#e08bc0", "s4": "#e6c34a", "s5": "#a9d6f7",
    "s6": "#b8bec4", "s7": "#b79af0", "s8": "#f2727f",
}  # fmt: skip
HEAT = ("#fde725", "#bddf26", "#7ad151", "#44bf70", "#22a884", "#26828e", "#355f8d", "#443a83", "#3b0f55")
ON_HEAT = ("#111111",) * 5 + ("#ffffff",) * 4


def _variables(colours: dict[str, str]) -> str:
    return "".join(f"--{name}:{colour};" for name, colour in colours.items())


_RULES = """
*{box-sizing:border-box}
html{scroll-behavior:smooth;-webkit-text-size-adjust:100%}
@media (prefers-reduced-motion:reduce){html{scroll-behavior:auto}}
body{margin:0;background:var(--bg);color:var(--text);font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
main,header,footer{max-width:1180px;margin:0 auto;padding:0 1.25rem}
header{padding-top:1.5rem}
h1{font-size:1.7rem;line-height:1.2;margin:0 0 .25rem;overflow-wrap:anywhere}
h2{font-size:1.3rem;margin:2.5rem 0 .5rem;padding-top:.5rem;border-top:1px solid var(--rule)}
h3{font-size:1.05rem;margin:1.5rem 0 .4rem;overflow-wrap:anywhere}
p{max-width:75ch;margin:.4rem 0 .8rem}
a{color:var(--link)}
.quiet,footer{color:var(--quiet)}
.top{display:flex;gap:1rem;justify-content:space-between;align-items:flex-start}
nav ul{list-style:none;display:flex;flex-wrap:wrap;gap:.25rem 1.25rem;padding:0;margin:.75rem 0 0}
button{font:inherit;color:inherit;background:var(--card);border:1px solid var(--rule);border-radius:6px;padding:.25rem .7rem;cursor:pointer}
[hidden]{display:none}
:focus-visible{outline:3px solid var(--link);outline-offset:2px}
.skip{position:absolute;left:-999px}
.skip:focus{left:1rem;top:.5rem;background:var(--bg);padding:.3rem}
.scroll{overflow-x:auto;max-width:100%}
.numbers{display:flex;flex-wrap:wrap;gap:.75rem;padding:0;list-style:none;margin:1rem 0}
.numbers li{background:var(--card);border:1px solid var(--rule);border-radius:8px;padding:.5rem .9rem;min-width:8rem}
.numbers b{display:block;font-size:1.25rem;font-variant-numeric:tabular-nums}
dl{columns:27rem 2;column-gap:2.5rem;margin:.5rem 0 1rem}
dl div{display:grid;grid-template-columns:minmax(7rem,42%) 1fr;gap:1rem;padding:.1rem 0;break-inside:avoid}
dt{color:var(--quiet)}
dd{margin:0;overflow-wrap:anywhere}
table{border-collapse:collapse;font-size:.9rem;margin:.5rem 0;font-variant-numeric:tabular-nums}
caption{text-align:left;color:var(--quiet);padding-bottom:.3rem}
th,td{padding:.3rem .7rem;border-bottom:1px solid var(--rule);text-align:left;vertical-align:top}
th{background:var(--card);white-space:nowrap}
th button{background:none;border:0;padding:0;font-weight:inherit;text-align:inherit}
th button::after{content:"\\2195";opacity:.45;margin-left:.35em}
th[aria-sort=ascending] button::after{content:"\\2191";opacity:1}
th[aria-sort=descending] button::after{content:"\\2193";opacity:1}
td.n,th.n{text-align:right;white-space:nowrap}
td.w{overflow-wrap:anywhere;min-width:9rem;max-width:28rem}
details{margin:.6rem 0}
summary{cursor:pointer;color:var(--link)}
pre{background:var(--card);border:1px solid var(--rule);border-radius:6px;padding:.6rem .8rem;white-space:pre-wrap;overflow-x:auto;margin:.2rem 0;font-size:.85rem}
pre span{white-space:nowrap}
.command{display:flex;gap:.6rem;align-items:flex-start}
.command pre{flex:1;min-width:0}
svg text{font:13px system-ui,-apple-system,"Segoe UI",Roboto,sans-serif;fill:var(--text)}
svg text.small{font-size:12px;fill:var(--quiet)}
svg text.label{font-size:12px;paint-order:stroke;stroke:var(--bg);stroke-width:3px;stroke-linejoin:round}
svg text.title{fill:var(--quiet)}
.chart{display:block;width:100%;max-width:860px;min-width:560px;height:auto}
.chart.square{max-width:600px;min-width:320px}
.heat{display:block;height:auto;width:100%;max-width:860px;min-width:600px}
.heat.fixed{width:auto;max-width:none}
.heat text{font-size:12px}
.heat rect{stroke:var(--rule)}
.bar{display:block}
.bar rect{fill:var(--s0)}
.grid{stroke:var(--rule);stroke-width:.6}
.axis{stroke:var(--quiet);fill:none}
.identity{stroke:var(--quiet);stroke-width:1.5}
.level{stroke:var(--quiet);stroke-dasharray:5 4}
.curve{stroke:var(--c);fill:none;stroke-width:1.8}
.dashed{stroke-dasharray:5 4}
.error{stroke:var(--c);fill:none;stroke-width:1.3}
.mark path{fill:var(--c);stroke:var(--bg);stroke-width:1}
.mark.hollow path{fill:var(--bg);stroke:var(--c);stroke-width:1.8}
.mark:hover path{stroke:var(--text)}
.legend{list-style:none;display:flex;flex-wrap:wrap;gap:.2rem 1.1rem;padding:0;margin:.4rem 0 1rem;font-size:.9rem}
.legend li{display:flex;gap:.4rem;align-items:center}
.legend svg{flex:none}
footer{margin-top:3rem;padding-bottom:2rem;font-size:.9rem}
@media (max-width:600px){main,header,footer{padding:0 .8rem}header{padding-top:1rem}.command{flex-direction:column}.command pre{width:100%}}
@media print{#scheme,.copy,.skip,nav{display:none}th button::after{content:none}table{font-size:.62rem}th,td{padding:.15rem .3rem}th,td.n{white-space:normal}td.w{min-width:5rem}body{font-size:11pt}.scroll{overflow:visible}.chart,.heat,.heat.fixed{min-width:0;max-width:100%}h2{break-after:avoid}svg,tr{break-inside:avoid}a{color:inherit}}
"""


def style_sheet() -> str:
    """The whole style sheet. Dark where the system says so, unless the reader chose; paper is always light."""
    classes = "".join(f".s{i}{{--c:var(--s{i})}}" for i in range(9))
    heat = "".join(f".h{i}{{fill:{c}}}svg .t{i}{{fill:{t}}}" for i, (c, t) in enumerate(zip(HEAT, ON_HEAT)))
    return (
        f":root{{color-scheme:light;{_variables(LIGHT)}}}"
        f"@media screen and (prefers-color-scheme:dark){{:root:not([data-theme=light]){{color-scheme:dark;{_variables(DARK)}}}}}"
        f"@media screen{{:root[data-theme=dark]{{color-scheme:dark;{_variables(DARK)}}}}}"
        f"{_RULES}{classes}{heat}"
    )
