package conf_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/mecha-project/mecha/components/conf"
	"github.com/mecha-project/mecha/components/fault"
)

type connConfig struct {
	Host     string      `yaml:"redisHost" required:"true"`
	Password conf.Secret `yaml:"redisPassword"`
	DB       int         `yaml:"redisDB"`
}

type level string

type sample struct {
	Conn     connConfig    `yaml:"conn"`
	Timeout  time.Duration `yaml:"dialTimeout" unit:"ms"`
	Interval conf.Duration `yaml:"interval" unit:"s"`
	Strict   time.Duration `yaml:"strict"`
	Size     conf.ByteSize `yaml:"maxSize"`
	Type     string        `yaml:"redisType" enum:"node,cluster"`
	Level    level         `yaml:"level" enum:"info,debug"`
	TLS      bool          `yaml:"enableTLS" alias:"tls,useTLS"`
	Scopes   []string      `yaml:"scopes"`
	Ports    []uint16      `yaml:"ports"`
	Labels   map[string]string
	Maybe    *int    `yaml:"maybe"`
	Small    int8    `yaml:"small"`
	Rate     float64 `yaml:"rate"`
	Hidden   string  `yaml:"-"`
	_        string
	validate func() error
}

func (s *sample) Validate() error {
	if s.validate == nil {
		return nil
	}
	return s.validate()
}

func defaults() *sample {
	return &sample{Timeout: 5 * time.Second, Type: "node", Size: 4 * conf.MiB}
}

func TestDecodeFillsEveryType(t *testing.T) {
	got := defaults()
	fs := conf.Decode(conf.Items(
		"REDISHOST", "h:1", "redisPassword", "pw", "redisDb", " 3 ", "dialTimeout", "250", "interval", "1.5",
		"strict", "1m30s", "maxSize", "8Ki", "redisType", "Cluster", "level", "DEBUG", "useTLS", "Y",
		"scopes", "a, b,,c", "ports", "1,65535", "labels", "k=v, x = y=z", "maybe", "0", "small", "-128", "rate", "2.5",
	), got)
	if len(fs) != 0 {
		t.Fatalf("findings: %v", fs)
	}
	zero := 0
	want := &sample{Conn: connConfig{Host: "h:1", Password: "pw", DB: 3}, Timeout: 250 * time.Millisecond,
		Interval: conf.Duration(1500 * time.Millisecond), Strict: 90 * time.Second, Size: 8 * conf.KiB, Type: "cluster",
		Level: "debug", TLS: true, Scopes: []string{"a", "b", "c"}, Ports: []uint16{1, 65535},
		Labels: map[string]string{"k": "v", "x": "y=z"}, Maybe: &zero, Small: -128, Rate: 2.5}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(sample{}), cmp.FilterPath(func(p cmp.Path) bool {
		return p.String() == "validate"
	}, cmp.Ignore())); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

func TestDecodeKeepsDefaultsForEmptyValues(t *testing.T) {
	got := defaults()
	if fs := conf.Decode(conf.Items("redisHost", "h", "dialTimeout", "", "maxSize", "", "redisType", "", "maybe", ""), got); len(fs) != 0 {
		t.Fatalf("findings: %v", fs)
	}
	if got.Timeout != 5*time.Second || got.Size != 4*conf.MiB || got.Type != "node" || got.Maybe != nil {
		t.Errorf("defaults were lost: %+v", got)
	}
}

func TestDecodeFindings(t *testing.T) {
	at := func(line int, name, value string) conf.Item {
		return conf.Item{Name: name, Value: value, File: "s.yaml", Line: line}
	}
	tests := []struct {
		name  string
		items []conf.Item
		want  []string
	}{
		{"unknown key near a known one", []conf.Item{at(3, "redisHots", "h"), at(2, "redisHost", "h")},
			[]string{"s.yaml:3: warning: redisHots: unknown key, ignored; did you mean redisHost?"}},
		{"unknown key near nothing", []conf.Item{at(2, "redisHost", "h"), at(3, "zzz", "1")},
			[]string{"s.yaml:3: warning: zzz: unknown key, ignored"}},
		{"a key of somebody else", []conf.Item{at(2, "redisHost", "h"), at(3, "KEYprefix", "1")}, nil},
		{"no name", []conf.Item{at(2, "redisHost", "h"), at(3, "", "1")},
			[]string{"s.yaml:3: error: an entry has no name"}},
		{"wrong types", []conf.Item{at(1, "redisHost", "h"), at(2, "redisDB", "one"), at(3, "enableTLS", "maybe"), at(4, "dialTimeout", "5 parsecs"),
			at(5, "strict", "5"), at(6, "redisType", "ring"), at(7, "small", "128"), at(8, "ports", "80,-1"), at(9, "maxSize", "4MB"), at(10, "rate", "x"), at(11, "labels", "x"), at(12, "maybe", "x")},
			[]string{
				`s.yaml:2: error: redisDB: "one" is not a whole number`,
				`s.yaml:3: error: enableTLS: "maybe" is not true or false`,
				`s.yaml:4: error: dialTimeout: "5 parsecs" is not a duration; write for example 30s, 250ms or 1h30m`,
				`s.yaml:5: error: strict: "5" has no unit; write for example 5s or 5ms`,
				`s.yaml:6: error: redisType: "ring" is not one of node, cluster`,
				`s.yaml:7: error: small: "128" is not a whole number from -128 to 127`,
				`s.yaml:8: error: ports: "-1" is not a whole number from 0 to 65535`,
				`s.yaml:9: error: maxSize: "4MB" has the unknown suffix MB; write 4Mi (powers of 1024) or 4M (powers of 1000)`,
				`s.yaml:10: error: rate: "x" is not a number`,
				`s.yaml:11: error: labels: "x" is not a JSON object of strings or k=v pairs separated by commas`,
				`s.yaml:12: error: maybe: "x" is not a whole number`,
			}},
		{"given twice", []conf.Item{at(1, "redisHost", "h"), at(2, "redishost", "h")},
			[]string{"s.yaml:2: error: redishost: given twice (first on line 1); keep one"}},
		{"alias beside its name", []conf.Item{at(1, "redisHost", "h"), at(2, "tls", "1"), at(3, "enableTLS", "1")},
			[]string{"s.yaml:3: error: enableTLS: means the same as tls, which is given too (first on line 2); keep one"}},
		{"required and absent", []conf.Item{at(2, "redisDB", "1")},
			[]string{"s.yaml: error: redisHost: required, but not given"}},
		{"required and empty", []conf.Item{at(2, "redisHost", "")},
			[]string{"s.yaml:2: error: redisHost: required, but not given"}},
		{"hidden field is unknown", []conf.Item{at(1, "redisHost", "h"), at(2, "hidden", "x")},
			[]string{"s.yaml:2: warning: hidden: unknown key, ignored"}},
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			var got []string
			for _, f := range conf.Decode(tc.items, defaults(), conf.Also("keyPrefix")) {
				got = append(got, f.String())
			}
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
}

func TestDecodeDoesNotShowSecrets(t *testing.T) {
	type pins struct {
		Pins []conf.Secret `yaml:"pins"`
		DB   int           `yaml:"db"`
		Wait time.Duration `yaml:"wait"`
		Odd  oddSecret     `yaml:"odd"`
	}
	items := []conf.Item{{Name: "db", Value: "hunter2", Secret: true}, {Name: "wait", Value: "hunter2", Secret: true}, {Name: "odd", Value: "hunter2", Secret: true}}
	fs := conf.Decode(items, &pins{})
	if len(fs) != 3 {
		t.Fatalf("got %d findings, want 3: %v", len(fs), fs)
	}
	for _, f := range fs {
		if strings.Contains(f.String(), "hunter2") {
			t.Errorf("secret shown: %s", f)
		}
	}
	if got, want := fs[0].Text(), "db: the secret value is not a whole number"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

type oddSecret struct{}

func (o *oddSecret) UnmarshalText(b []byte) error { return errors.New("bad: " + string(b)) }

func TestDecodePlacesValidationErrors(t *testing.T) {
	items := []conf.Item{{Name: "redisHost", Value: "h", File: "f", Line: 1}, {Name: "redisDB", Value: "x", File: "f", Line: 2}, {Name: "rate", Value: "1", File: "f", Line: 3}}
	c := defaults()
	c.validate = func() error {
		return errors.Join(
			conf.Bad("rate", "want at least %d", 2),
			conf.Bad("redisDB", "judges only the default"), // wrong type already: dropped
			errors.New("redisHost: must have a port"),
			errors.New("rate and small exclude each other"),
			errors.Join(conf.Bad("small", "too small"), nil),
			conf.Bad("rate", "want at least %d", 2), // said before
		)
	}
	var got []string
	for _, f := range conf.Decode(items, c) {
		got = append(got, f.String())
	}
	want := []string{
		`f:2: error: redisDB: "x" is not a whole number`,
		"f:3: error: rate: want at least 2",
		"f:1: error: redisHost: must have a port",
		"f: error: rate and small exclude each other",
		"f: error: small: too small",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

func TestDecodeValidatesNestedStructs(t *testing.T) {
	type outer struct{ TLS conf.TLS }
	fs := conf.Decode(conf.Items("clientCert", "x.pem"), &outer{})
	if len(fs) != 1 || fs[0].Text() != "clientKey: required with clientCert" {
		t.Errorf("got %v", fs)
	}
}

func TestDecodeRefusesWhatIsNoStruct(t *testing.T) {
	n := 1
	for name, into := range map[string]any{"nil": nil, "value": sample{}, "pointer to int": &n, "nil pointer": (*sample)(nil)} {
		t.Run(name, func(t *testing.T) {
			if err := conf.Decode(nil, into).Err(); err == nil {
				t.Error("no error")
			}
		})
	}
}

func TestFindingsErr(t *testing.T) {
	fs := conf.Findings{{File: "a", Line: 2, Key: "k", Msg: "m", Severity: conf.Error}, {Msg: "w"}, {Msg: "n", Severity: conf.Error}}
	err := fs.Err()
	if got, want := err.Error(), "a:2: k: m\nn"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if got := fault.Of(err); got != fault.Invalid {
		t.Errorf("code %v, want invalid", got)
	}
	if w := fs.Warnings(); len(w) != 1 || w[0].Msg != "w" || w.Err() != nil {
		t.Errorf("warnings %v, err %v", w, w.Err())
	}
}

func TestDescribe(t *testing.T) {
	c := defaults()
	c.Conn.Password = "hunter2"
	c.Scopes = []string{"a", "b"}
	got := map[string]conf.FieldDoc{}
	for _, d := range conf.Describe(c) {
		got[d.Name] = d
	}
	want := map[string]conf.FieldDoc{
		"redisHost":     {Name: "redisHost", Path: "Conn.Host", Type: "text", Required: true},
		"redisPassword": {Name: "redisPassword", Path: "Conn.Password", Type: "secret", Default: "********"},
		"dialTimeout":   {Name: "dialTimeout", Path: "Timeout", Type: "duration", Default: "5s", Unit: "ms"},
		"maxSize":       {Name: "maxSize", Path: "Size", Type: "size", Default: "4Mi"},
		"redisType":     {Name: "redisType", Path: "Type", Type: "text", Default: "node", Enum: []string{"node", "cluster"}},
		"enableTLS":     {Name: "enableTLS", Path: "TLS", Type: "bool", Default: "false", Aliases: []string{"tls", "useTLS"}},
		"scopes":        {Name: "scopes", Path: "Scopes", Type: "list of text", Default: "a,b"},
		"labels":        {Name: "labels", Path: "Labels", Type: "map"},
		"maybe":         {Name: "maybe", Path: "Maybe", Type: "integer"},
	}
	for name, w := range want {
		if diff := cmp.Diff(w, got[name]); diff != "" {
			t.Errorf("%s: -want +got:\n%s", name, diff)
		}
	}
	if _, there := got["hidden"]; there || len(got) != 16 {
		t.Errorf("got %d keys (hidden: %v), want 16", len(got), there)
	}
	if conf.Describe(3) != nil {
		t.Error("a number was described")
	}
}

func TestNearest(t *testing.T) {
	known := []string{"redisHost", "redisPassword", "dialTimeout", "db"}
	for in, want := range map[string]string{
		"redisHots": "redisHost", "RedisHost": "redisHost", "redis_host": "redisHost", "redis-hst": "redisHost", "redisPasword": "redisPassword",
		"timeoutDial": "", "d": "db", "": "", "x": "", "bd": "db", strings.Repeat("redisHost", 20): "",
	} {
		if got := conf.Nearest(in, known); got != want {
			t.Errorf("Nearest(%q) = %q, want %q", in, got, want)
		}
	}
}

func TestParseBool(t *testing.T) {
	for _, s := range []string{"true", "T", "yes", "Y", "on", "1", " true "} {
		if b, err := conf.ParseBool(s); !b || err != nil {
			t.Errorf("%q: %v, %v", s, b, err)
		}
	}
	for _, s := range []string{"false", "F", "no", "n", "OFF", "0"} {
		if b, err := conf.ParseBool(s); b || err != nil {
			t.Errorf("%q: %v, %v", s, b, err)
		}
	}
	if _, err := conf.ParseBool("2"); err == nil {
		t.Error("2 accepted")
	}
}
