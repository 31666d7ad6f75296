package conf

import (
	"errors"
	"fmt"
	"regexp"
	"strconv"
)

// MaxFileFindings bounds a list of findings; people mend the first few and look again.
const MaxFileFindings = 20

// FileFindings are what is wrong in a YAML file that a component reads itself: "file:line: words"
// each, 20 at most. The zero value with a File is ready. It is for one goroutine.
type FileFindings struct {
	File string
	list []error
}

// Add notes a finding. A line below 1 is the first.
func (f *FileFindings) Add(line int, words string) {
	switch {
	case len(f.list) < MaxFileFindings:
		f.list = append(f.list, fmt.Errorf("%s:%d: %s", f.File, max(line, 1), words))
	case len(f.list) == MaxFileFindings:
		f.list = append(f.list, errors.New("and more"))
	}
}

var yamlLine = regexp.MustCompile(`^yaml: (?:line (\d+): )?`)

// AddSyntax notes what the YAML reader says, with its line moved to the front.
func (f *FileFindings) AddSyntax(err error) {
	text, line := err.Error(), 1
	if m := yamlLine.FindStringSubmatch(text); m != nil {
		text = text[len(m[0]):]
		if n, err := strconv.Atoi(m[1]); err == nil {
			line = n
		}
	}
	f.Add(line, text)
}

// Len is the number of findings, at most 21: "and more" is one.
func (f *FileFindings) Len() int { return len(f.list) }

// Err joins the findings, in the order they were added; nil when there are none.
func (f *FileFindings) Err() error { return errors.Join(f.list...) }
