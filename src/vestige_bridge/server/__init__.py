"""The process: sockets and signals, HTTP/1.1 towards clients, the application, probes, metrics, the access log."""
