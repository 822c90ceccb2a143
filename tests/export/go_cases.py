"""Go templates with what Go's own text/template makes of them; a marked test asks a real Go."""

from __future__ import annotations

from typing import Any

VALUES: dict[str, Any] = {
    "Name": "ab", "Empty": "", "List": ["x", "y", "z"], "None": [], "Yes": True, "No": False,
    "Map": {"Key": "value"}, "Umlaut": "aé",
}  # fmt: skip
TODAY = "2031-07-04"

# template -> text
CASES = {
    "": "",
    "plain } text }} {": "plain } text }} {",
    "a {{ .Name }} b": "a ab b",
    "a {{- .Name -}} b": "aabb",
    "a\n\t {{- .Name }} \n{{- .Name -}}\n\n b": "aab\x00".replace("\x00", "abb"),
    "x{{/* nothing */}}y": "xy",
    "x {{- /* nothing */ -}} y": "xy",
    "{{ .Missing }}": "<no value>",
    '{{ "quo\\"te\\n\\u00e9\\\\" }}': 'quo"te\né\\',
    "{{ `raw \\n` }}": "raw \\n",
    "{{ 3 }} {{ -3 }} {{ true }}": "3 -3 true",
    "{{ if .Name }}yes{{ end }}{{ if .Empty }}no{{ end }}": "yes",
    "{{ if .Missing }}a{{ else }}b{{ end }}{{ if .None }}a{{ else }}b{{ end }}": "bb",
    "{{ if .No }}1{{ else if .Empty }}2{{ else if .Yes }}3{{ else }}4{{ end }}": "3",
    "{{ range .List }}[{{ . }}]{{ end }}": "[x][y][z]",
    "{{ range $i, $v := .List }}{{ $i }}{{ $v }}{{ end }}": "0x1y2z",
    "{{ range $v := .List }}{{ $v }}{{ end }}": "xyz",
    "{{ range .None }}a{{ else }}none{{ end }}": "none",
    "{{ range .List }}{{ $.Name }}{{ end }}": "ababab",
    "{{ with .Name }}{{ . }}{{ end }}{{ with .Empty }}{{ . }}{{ else }}-{{ end }}": "ab-",
    "{{ with $x := .Name }}{{ $x }}{{ end }}": "ab",
    "{{ $x := 1 }}{{ if .Yes }}{{ $x = 2 }}{{ end }}{{ $x }}": "2",
    "{{ $x := 1 }}{{ if .Yes }}{{ $x := 2 }}{{ end }}{{ $x }}": "1",
    "{{ $x := false }}{{ range .List }}{{ if $x }},{{ end }}{{ $x = true }}{{ . }}{{ end }}": "x,y,z",
    "{{ .Map.Key }} {{ $.Map.Key }} {{ .Map.Other }}": "value value <no value>",
    '{{ eq .Name "ab" }} {{ eq .Name "a" "ab" }} {{ ne .Name "ab" }}': "true true false",
    '{{ and .Name .Empty }}|{{ or .Empty .Name }}|{{ and .Yes (not .No) }}|{{ or .No "" }}|': "|ab|true||",
    "{{ and .Yes .Name (eq 1 1) }} {{ not .Name }}": "true false",
    "{{ len .List }} {{ len .Name }} {{ len .Umlaut }}": "3 2 3",
    "{{ len (slice .List 1) }} {{ slice .Name 1 }} {{ slice .Name 0 1 }} {{ slice .Name }}": "2 b a ab",
    "{{ range $i, $_ := .List }}{{ eq (len (slice $.List $i)) 1 }} {{ end }}": "false false true ",
    '{{ index .List 1 }} {{ index .Map "Key" }}': "y value",
    "{{ lt 1 2 }} {{ le 2 2 }} {{ gt 1 2 }} {{ ge 1 2 }}": "true true false false",
    "{{ .Name | len }} {{ .Name | eq \"ab\" }} {{ 1 | slice .Name }}": "2 true b",
    '{{ print "a" 1 }}': "a1",
    "{{ slice currentDate 5 7 }} {{ currentDate }}": "07 2031-07-04",
    '{{ if eq (slice currentDate 5 7) "07" }}July{{ end }}': "July",
}  # fmt: skip

# What neither Go nor the subset takes.
WRONG = (
    "{{ if .Name }}",
    "{{ end }}",
    "{{ .Name ",
    "{{ unknown .Name }}",
    "{{ $undeclared }}",
    "{{ if }}x{{ end }}",
    "{{ else }}",
    '{{ "open }}',
    "{{ (len .Name }}",
    "{{ slice .Name 3 }}",
    "{{ .Name.Field }}",
    '{{ "a" "b" }}',
    "{{ | len }}",
    "{{ len }}",
)
