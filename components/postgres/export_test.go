package postgres

import (
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgtype"

	"github.com/mecha-project/mecha/components/block"
)

// AppendValue is how a column's value becomes JSON.
func AppendValue(oid uint32, format int16, raw []byte) ([]byte, error) {
	return appendValue(nil, pgtype.NewMap(), &pgconn.FieldDescription{DataTypeOID: oid, Format: format}, raw)
}

// SetRecheck makes a store look more often at its table and its connection.
func SetRecheck(s block.Configuration, d time.Duration) { s.(*configuration).recheck = d }

// Limit lowers what one query of a store may answer, in bytes.
func Limit(s block.State, most int) { s.(*jsonState).most = most }

// Statement is the text of a query, without its arguments.
func Statement(q *block.StateSearch) string {
	var b search
	return b.statement("SELECT", q, 0)
}
