"""Networks: from a weights file to a frozen module."""
