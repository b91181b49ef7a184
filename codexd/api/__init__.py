"""An HTTP request into protocol values and back: the endpoints, and the application that they make."""
