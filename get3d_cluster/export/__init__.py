"""What people look at: textured meshes as files, contact sheets, turntables."""
