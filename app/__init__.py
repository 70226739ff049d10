"""The Gradio Space and its server."""
