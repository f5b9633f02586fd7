"""Resume: finished tiles kept on disk until their picture is, so that a job that was cut short can go on."""
