"""The state moves of the queue, one Lua script each; a package only so that an installed wheel carries them."""
