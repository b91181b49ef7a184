"""One upstream answer to one client: driving it, keeping it alive, cancelling it."""
