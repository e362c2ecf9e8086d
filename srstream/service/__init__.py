"""The daemon: takes jobs on ZeroMQ sockets, keeps engines warm, loses nothing, lets nobody in."""
