"""The local server: questions over HTTP, and a page to ask them on."""
