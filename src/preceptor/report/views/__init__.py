"""What the page shows, ready to be set: sentences, tables and examples, each a function of the report's content."""
