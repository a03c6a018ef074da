"""The site: a renderer for Plotly figures, generated pages and the builder (`python -m tutor.book.build`)."""
