"""A referee: three hosts, three members of etcd and a client; who has and who answers for each address."""
