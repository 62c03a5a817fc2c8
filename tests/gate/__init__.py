"""What recording may take of the thread that trains, compared with what that thread does anyway."""
