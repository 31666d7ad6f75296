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
