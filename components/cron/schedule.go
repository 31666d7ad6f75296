package cron

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/robfig/cron/v3"
)

// schedule gives the first of its times after t; a zero time means that there is none.
type schedule interface{ Next(t time.Time) time.Time }

var parser = cron.NewParser(cron.SecondOptional | cron.Minute | cron.Hour | cron.Dom | cron.Month | cron.Dow | cron.Descriptor)

// parse reads a schedule. The text of the errors is Dapr's.
func parse(text string) (schedule, error) {
	bad := func(err error) error { return fmt.Errorf("invalid schedule format '%s': %w", text, err) }
	zone, rest, more := strings.Cut(text, " ")
	switch {
	case !strings.HasPrefix(text, "TZ=") && !strings.HasPrefix(text, "CRON_TZ="):
	case !more: // the library would panic
		return nil, bad(errors.New("a time zone is to be followed by a space and the fields"))
	case strings.HasPrefix(strings.TrimSpace(rest), "@every"):
		return nil, bad(fmt.Errorf("%s means nothing to @every", zone))
	}
	for field := range strings.FieldsSeq(text) {
		if strings.Trim(field, ",") == "" { // no value at all: the library would search for years
			return nil, bad(fmt.Errorf("field %s has no value", field))
		}
	}
	s, err := parser.Parse(text)
	if err != nil {
		return nil, bad(err)
	}
	if every, ok := interval(text); ok && every <= 0 {
		return nil, bad(fmt.Errorf("%v is no time between events; want a positive duration such as 90s", every))
	}
	return s, nil
}

// interval is the duration of an @every schedule.
func interval(text string) (time.Duration, bool) {
	every, ok := strings.CutPrefix(text, "@every ")
	if !ok {
		return 0, false
	}
	d, err := time.ParseDuration(every)
	return d, err == nil
}

// tooShort tells of an @every schedule under a second, which is the shortest there is.
func tooShort(text string) (time.Duration, bool) {
	every, ok := interval(text)
	return every, ok && every < time.Second
}
