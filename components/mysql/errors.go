package mysql

import "github.com/mecha-project/mecha/components/fault"

// Numbers of the server's errors that code asks for.
const (
	errNoDatabase = 1049
	errNoColumn   = 1054
	errNoTable    = 1146
	errDeadlock   = 1213
	errChanged    = 1020 // a row changed since the transaction first looked
	errPacket     = 1153
	errUnnamed    = 1105 // has only a text
)

func say(code fault.Code, text string) *fault.Error {
	return fault.New("", code, "%s", text).WithSent(fault.SentNever)
}

// meaning says what an error number means, or nil. Only errors after which nothing has happened
// are here.
func meaning(number uint16) *fault.Error {
	switch number {
	case 1044, 1045, 1142, 1143, 1227, 1698, 1820, 1862, 3118, 4151:
		return say(fault.Denied, "the server refuses the user")
	case 1040, 1203, 1226:
		return say(fault.Exhausted, "the server or the user has too many connections")
	case 1021, 1114:
		return say(fault.Exhausted, "the database cannot grow; is the disk full?")
	case 1290, 1792, 1836:
		return say(fault.Unavailable, "the server takes no writes now; is it a replica?")
	case errDeadlock, errChanged:
		return say(fault.Unavailable, "other transactions were in the way again and again")
	case 1205:
		return say(fault.Unavailable, "somebody else holds a lock; is a transaction left open?")
	case errNoDatabase, errNoTable:
		return say(fault.Unavailable, "the table is gone; a restart makes it again")
	case errPacket:
		return say(fault.TooLarge, "the request is larger than the server's max_allowed_packet")
	case 1406:
		return say(fault.TooLarge, "the key is longer than the table's column")
	case 1048:
		return say(fault.Invalid, "the table holds another key that it takes for the same: it ignores case, accents or spaces at the end").With(fault.IllegalKey)
	case 1366, 3988:
		return say(fault.Invalid, "the table's character set cannot hold the key").With(fault.IllegalKey)
	case 1292, 1441:
		return say(fault.Invalid, "the item would end at a time that the database cannot hold").With(fault.BadExpiry)
	case 1665:
		return say(fault.Unsupported, "the server's binlog_format is STATEMENT; add transaction_isolation='REPEATABLE-READ' (MariaDB before 11.1: tx_isolation) to the connection string")
	}
	return nil
}
