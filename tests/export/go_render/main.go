// Executes templates with Go's own text/template on the values that Ollama gives them: a JSON list of
// {"template", "values", "today"} comes in, a JSON list of {"text"} or {"error"} goes out.
package main

import (
	"encoding/json"
	"os"
	"strings"
	"text/template"
)

type message struct {
	Role     string
	Content  string
	Thinking string
}

type values struct {
	System     string
	Messages   []*message
	Think      bool
	ThinkLevel string
	IsThinkSet bool
}

type wish struct {
	Template string
	Values   *values
	Plain    map[string]any
	Today    string
}

func execute(w wish) map[string]string {
	functions := template.FuncMap{"currentDate": func() string { return w.Today }}
	parsed, err := template.New("").Option("missingkey=zero").Funcs(functions).Parse(w.Template)
	if err != nil {
		return map[string]string{"error": err.Error()}
	}
	data := w.Plain
	if w.Values != nil {
		data = map[string]any{
			"System": w.Values.System, "Messages": w.Values.Messages, "Response": "", "Think": w.Values.Think,
			"ThinkLevel": w.Values.ThinkLevel, "IsThinkSet": w.Values.IsThinkSet,
		}
	}
	var out strings.Builder
	if err := parsed.Execute(&out, data); err != nil {
		return map[string]string{"error": err.Error()}
	}
	return map[string]string{"text": out.String()}
}

func main() {
	var wishes []wish
	if err := json.NewDecoder(os.Stdin).Decode(&wishes); err != nil {
		panic(err)
	}
	answers := []map[string]string{}
	for _, w := range wishes {
		answers = append(answers, execute(w))
	}
	if err := json.NewEncoder(os.Stdout).Encode(answers); err != nil {
		panic(err)
	}
}
