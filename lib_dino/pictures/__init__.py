"""Pictures: files and pixels at the edge of the program, and the text they carry."""
