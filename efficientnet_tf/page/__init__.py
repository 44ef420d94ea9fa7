"""Self-contained HTML pages: what a run did, and how good a model is.

`run.run_page` and `evaluation.evaluation_page` make them, from plain data, as text;
`document.write` puts one in place whole. A page loads nothing from anywhere: curves are inline SVG,
pictures are data.
"""
