"""Reference pictures: sharp pictures of the same thing lend their detail, place by place, where they match."""
