from dipp_ray.import_path import drivers_folders_last

drivers_folders_last()  # before anything else is imported
