package hostdir_test

const hearsOfKills = true
