package mysql

// AppendValue is how a column's value becomes JSON.
var AppendValue = appendValue
