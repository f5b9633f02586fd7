"""Panel: from controls or API values to a checked job."""
