"""The frame of a report: style, and places for title and body."""

from __future__ import annotations

from string import Template

MARK = '<meta name="generator" content="nern report">'  # a page that is made again may replace one that has it
TEMPLATE = Template(
    f"""\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
{MARK}
"""
    + """\
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>
:root { --ink: #222222; --soft: #5b636b; --rule: #e3e6ea; --before: #9aa3ad; --after: #0072b2; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1128px; padding: 40px 24px 72px; background: #ffffff; color: var(--ink);
  font: 16px/1.5 "Helvetica Neue", Helvetica, Arial, "Liberation Sans", "DejaVu Sans", sans-serif;
  -webkit-text-size-adjust: 100%; }
p, h1, h2, h3, figure { margin: 0; }
h1 { font-size: 40px; line-height: 1.15; letter-spacing: -0.01em; overflow-wrap: anywhere; }
h2 { font-size: 25px; line-height: 1.25; overflow-wrap: anywhere; }
h3 { font-size: 18px; line-height: 1.3; margin-top: 28px; overflow-wrap: anywhere; }
section > h3:first-child { margin-top: 0; }
h2.network { margin-top: 64px; padding-top: 24px; border-top: 2px solid var(--ink); }
h2.network + section { margin-top: 0; border-top: 0; }
header { padding-bottom: 8px; }
section { margin-top: 48px; padding-top: 24px; border-top: 1px solid var(--rule); }
.kicker { color: var(--soft); font-size: 14px; margin-bottom: 4px; }
.lead { font-size: 18px; max-width: 46em; margin-top: 10px; overflow-wrap: anywhere; }
.missing { color: var(--soft); margin-top: 10px; padding-left: 12px; border-left: 3px solid var(--rule); max-width: 46em;
  overflow-wrap: anywhere; }
.caption, figcaption { color: var(--soft); font-size: 14px; max-width: 58em; margin-top: 10px; }
figure { margin-top: 24px; }
figure img { display: block; max-width: 100%; height: auto; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(225px, 1fr)); gap: 16px; margin-top: 18px; }
.tile { border: 1px solid var(--rule); border-radius: 6px; padding: 16px 18px; }
.tile .name { color: var(--soft); font-size: 14px; }
.tile .figure { font-size: 25px; line-height: 1.35; font-weight: 600; white-space: nowrap; }
.tile .about { color: var(--soft); font-size: 14px; }
table { width: 100%; border-collapse: collapse; margin-top: 12px; font-variant-numeric: tabular-nums; }
th { color: var(--soft); font-size: 14px; font-weight: 400; text-align: left; white-space: nowrap; }
th, td { padding: 7px 16px 7px 0; border-bottom: 1px solid var(--rule); vertical-align: middle; }
.number { text-align: right; white-space: nowrap; }
.bars { width: 46%; padding-right: 0; }
.bar { height: 8px; margin: 2px 0; border-radius: 1px; }
.before { background: var(--before); }
.after { background: var(--after); }
.key { display: inline-block; width: 10px; height: 10px; margin: 0 4px 0 0; }
.key.after { margin-left: 12px; }
tr.total td { font-weight: 600; border-bottom: 0; }
@media (max-width: 720px) {
  body { padding: 24px 14px 48px; }
  h1 { font-size: 30px; }
  h2 { font-size: 22px; }
  section { margin-top: 36px; }
  .lead { font-size: 16px; }
  .tiles { grid-template-columns: 1fr; gap: 10px; }
  .bars { display: none; }
  th.number { white-space: normal; }
  th, td { padding-right: 10px; }
  figure img { margin: 0 auto; }
}
</style>
</head>
<body>
$body
</body>
</html>
"""
)
