"""The shared page: templates, pictures, words."""
