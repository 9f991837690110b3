"""What came of questions about a stream: a table, a document for machines, a page."""
