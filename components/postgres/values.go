package postgres

import (
	"bytes"
	"encoding/hex"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgtype"

	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/components/sqlbinding"
)

// binary asks for those types in the binary form whose text depends on settings of the session.
// All others come as text. Ways of sending statements that do not know the types beforehand get
// text only.
var binary = pgx.QueryResultFormatsByOID{
	pgtype.ByteaOID: pgx.BinaryFormatCode, pgtype.DateOID: pgx.BinaryFormatCode,
	pgtype.TimestampOID: pgx.BinaryFormatCode, pgtype.TimestamptzOID: pgx.BinaryFormatCode,
}

// appendValue appends a column's value as JSON: numbers, booleans and JSON as such, NULL as null,
// bytes in base64, times as RFC 3339 in UTC, arrays of these as arrays, all else as the text that
// the database has for it.
func appendValue(b []byte, m *pgtype.Map, f *pgconn.FieldDescription, raw []byte) ([]byte, error) {
	if raw == nil {
		return append(b, "null"...), nil
	}
	if t, ok := m.TypeForOID(f.DataTypeOID); ok {
		if array, ok := t.Codec.(*pgtype.ArrayCodec); ok && simpleType(array.ElementType.OID) {
			return appendArray(b, m, f, array.ElementType.OID, raw)
		}
	}
	return appendScalar(b, m, f.DataTypeOID, f.Format, raw)
}

// simpleType tells whether values of a type are more than their text.
func simpleType(oid uint32) bool {
	switch oid {
	case pgtype.Int2OID, pgtype.Int4OID, pgtype.Int8OID, pgtype.OIDOID, pgtype.Float4OID, pgtype.Float8OID, pgtype.NumericOID,
		pgtype.BoolOID, pgtype.JSONOID, pgtype.JSONBOID, pgtype.ByteaOID, pgtype.DateOID, pgtype.TimestampOID, pgtype.TimestamptzOID,
		pgtype.TextOID, pgtype.VarcharOID, pgtype.BPCharOID, pgtype.NameOID, pgtype.UUIDOID:
		return true
	}
	return false
}

func appendScalar(b []byte, m *pgtype.Map, oid uint32, format int16, raw []byte) ([]byte, error) {
	switch oid {
	case pgtype.Int2OID, pgtype.Int4OID, pgtype.Int8OID, pgtype.OIDOID, pgtype.Float4OID, pgtype.Float8OID, pgtype.NumericOID:
		return sqlbinding.AppendNumber(b, raw), nil
	case pgtype.BoolOID:
		if len(raw) == 1 && raw[0] == 't' {
			return append(b, "true"...), nil
		}
		return append(b, "false"...), nil
	case pgtype.JSONOID, pgtype.JSONBOID:
		return sqlbinding.AppendJSON(b, raw), nil
	case pgtype.ByteaOID:
		return appendBytea(b, format, raw)
	case pgtype.DateOID, pgtype.TimestampOID, pgtype.TimestamptzOID:
		return appendTime(b, m, oid, format, raw)
	}
	return sqlbinding.AppendText(b, raw), nil
}

func appendBytea(b []byte, format int16, raw []byte) ([]byte, error) {
	if format == pgx.BinaryFormatCode {
		return sqlbinding.AppendBytes(b, raw), nil
	}
	digits, ok := bytes.CutPrefix(raw, []byte(`\x`))
	value := make([]byte, hex.DecodedLen(len(digits)))
	if _, err := hex.Decode(value, digits); !ok || err != nil {
		return nil, fault.New("", fault.Unsupported, "bytes come in another form than hex; set bytea_output to hex, or queryExecMode to cache_statement").WithSent(fault.SentMaybe)
	}
	return sqlbinding.AppendBytes(b, value), nil
}

// appendTime appends a time in UTC; one without zone is taken as UTC. What RFC 3339 has no form for
// (infinity, years beyond four digits, text in another DateStyle) is the text of the database.
func appendTime(b []byte, m *pgtype.Map, oid uint32, format int16, raw []byte) ([]byte, error) {
	var t pgtype.Timestamptz
	var err error
	switch oid {
	case pgtype.DateOID:
		var d pgtype.Date
		err = m.Scan(oid, format, raw, &d)
		t = pgtype.Timestamptz{Time: d.Time, InfinityModifier: d.InfinityModifier}
	case pgtype.TimestampOID:
		var at pgtype.Timestamp
		err = m.Scan(oid, format, raw, &at)
		t = pgtype.Timestamptz{Time: at.Time, InfinityModifier: at.InfinityModifier}
	default:
		err = m.Scan(oid, format, raw, &t)
	}
	if err == nil && t.InfinityModifier == pgtype.Finite {
		if out, ok := sqlbinding.AppendTime(b, t.Time.UTC()); ok {
			return out, nil
		}
	}
	if format == pgx.TextFormatCode {
		return sqlbinding.AppendText(b, raw), nil
	}
	if err != nil {
		return nil, err
	}
	switch t.InfinityModifier {
	case pgtype.Infinity:
		return append(b, `"infinity"`...), nil
	case pgtype.NegativeInfinity:
		return append(b, `"-infinity"`...), nil
	}
	at, era := t.Time.UTC(), ""
	if y := at.Year(); y <= 0 {
		at, era = at.AddDate(1-2*y, 0, 0), " BC"
	}
	layout := "2006-01-02 15:04:05.999999Z"
	if oid == pgtype.DateOID {
		layout = "2006-01-02"
	}
	return sqlbinding.AppendText(b, []byte(at.Format(layout)+era)), nil
}

// appendArray appends an array as JSON arrays, as deep as it is.
func appendArray(b []byte, m *pgtype.Map, f *pgconn.FieldDescription, element uint32, raw []byte) ([]byte, error) {
	var a pgtype.Array[pgtype.Text]
	if err := m.Scan(f.DataTypeOID, f.Format, raw, &a); err != nil {
		return sqlbinding.AppendText(b, raw), nil // its text is true, too
	}
	if len(a.Dims) == 0 {
		return append(b, "[]"...), nil
	}
	total := 1
	for _, d := range a.Dims {
		if total *= int(d.Length); d.Length < 0 || total > len(a.Elements) {
			break
		}
	}
	if total != len(a.Elements) { // not as a server writes it
		return sqlbinding.AppendText(b, raw), nil
	}
	next := 0
	var level func(dim int) error
	level = func(dim int) (err error) {
		b = append(b, '[')
		for i := range int(a.Dims[dim].Length) {
			if i > 0 {
				b = append(b, ',')
			}
			if dim+1 < len(a.Dims) {
				if err := level(dim + 1); err != nil {
					return err
				}
				continue
			}
			v := a.Elements[next]
			next++
			if !v.Valid {
				b = append(b, "null"...)
			} else if b, err = appendScalar(b, m, element, f.Format, []byte(v.String)); err != nil {
				return err
			}
		}
		b = append(b, ']')
		return nil
	}
	err := level(0)
	return b, err
}

// argument is a parameter as text, or nil for NULL. oid is the type the statement wants, 0 if
// nobody has asked.
func argument(m *pgtype.Map, oid uint32, p sqlbinding.Param) any {
	switch p.Kind {
	case sqlbinding.Null:
		return nil
	case sqlbinding.Number:
		switch oid {
		case pgtype.Int2OID, pgtype.Int4OID, pgtype.Int8OID, pgtype.OIDOID:
			if whole, ok := p.Whole(); ok {
				return whole
			}
		}
	case sqlbinding.List:
		return list(m, oid, p)
	}
	return p.Text
}

// list is a JSON array for types that hold its text, and an array of the database for the others.
// A type that the library does not know is one of the user's, such as an array of an enum.
func list(m *pgtype.Map, oid uint32, p sqlbinding.Param) string {
	var element uint32
	if t, known := m.TypeForOID(oid); known {
		array, ok := t.Codec.(*pgtype.ArrayCodec)
		if !ok {
			return p.Text
		}
		element = array.ElementType.OID
	}
	var b strings.Builder
	appendList(&b, p, element == pgtype.JSONOID || element == pgtype.JSONBOID)
	return b.String()
}

func appendList(b *strings.Builder, p sqlbinding.Param, json bool) {
	quote := strings.NewReplacer(`\`, `\\`, `"`, `\"`)
	b.WriteByte('{')
	for i, e := range p.Elements() {
		if i > 0 {
			b.WriteByte(',')
		}
		switch {
		case e.Kind == sqlbinding.Null:
			b.WriteString("NULL")
		case e.Kind == sqlbinding.List && !json:
			appendList(b, e, false)
		default:
			text := e.Text
			if json {
				text = e.JSON()
			}
			b.WriteByte('"')
			_, _ = quote.WriteString(b, text)
			b.WriteByte('"')
		}
	}
	b.WriteByte('}')
}
