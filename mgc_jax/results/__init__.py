"""From predictions to pages."""
