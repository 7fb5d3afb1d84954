"""The promises to the outside, as data; a package only so that an installed wheel carries them too."""
