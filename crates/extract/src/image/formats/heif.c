// The primary image of a HEIC or AVIF file, by libheif. Only heif.rs calls these functions.

#include <libheif/heif.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct luthier_heif_image {
    // Rows one after the other, without gaps; null if there is no image.
    uint8_t* pixels;
    // Also known if there are too many pixels.
    uint32_t width, height;
    // 3: RGB. 4: RGB and alpha.
    uint32_t channels;
    // How much memory decoding takes.
    uint64_t bytes;
    // Whether it is not the file that is wrong, but libheif that lacks a decoder.
    int is_unsupported;
    // What is wrong, if there is no image.
    char message[256];
};

static int failed(struct heif_error error, struct luthier_heif_image* found) {
    if (error.code == heif_error_Ok) return 0;
    found->is_unsupported =
        error.code == heif_error_Unsupported_filetype || error.code == heif_error_Unsupported_feature;
    snprintf(found->message, sizeof found->message, "%s", error.message);
    return 1;
}

static void copy_rows(const struct heif_image* image, struct luthier_heif_image* found) {
    int stride = 0;
    const uint8_t* rows = heif_image_get_plane_readonly(image, heif_channel_interleaved, &stride);
    // Turned and cropped images have other sides than the file says.
    found->width = (uint32_t)heif_image_get_width(image, heif_channel_interleaved);
    found->height = (uint32_t)heif_image_get_height(image, heif_channel_interleaved);
    size_t row = (size_t)found->channels * found->width;
    if (rows && (size_t)stride >= row) found->pixels = malloc(row * found->height);
    if (!found->pixels) {
        snprintf(found->message, sizeof found->message, "rows are missing");
        return;
    }
    for (uint32_t y = 0; y < found->height; y++) memcpy(found->pixels + y * row, rows + y * (size_t)stride, row);
}

void luthier_heif_decode(
    const uint8_t* bytes, size_t length, uint64_t most_pixels, uint64_t most_bytes,
    struct luthier_heif_image* found) {
    memset(found, 0, sizeof *found);
    struct heif_image_handle* handle = NULL;
    struct heif_image* image = NULL;
    struct heif_context* context = heif_context_alloc();
    // Images are decoded side by side: each needs one thread.
    heif_context_set_max_decoding_threads(context, 0);
    if (!failed(heif_context_read_from_memory_without_copy(context, bytes, length, NULL), found) &&
        !failed(heif_context_get_primary_image_handle(context, &handle), found)) {
        found->width = (uint32_t)heif_image_handle_get_width(handle);
        found->height = (uint32_t)heif_image_handle_get_height(handle);
        int has_alpha = heif_image_handle_has_alpha_channel(handle);
        found->channels = has_alpha ? 4 : 3;
        enum heif_chroma chroma = has_alpha ? heif_chroma_interleaved_RGBA : heif_chroma_interleaved_RGB;
        // libheif's planes, its interleaved pixels, and the copy of these.
        found->bytes = (uint64_t)found->width * found->height * (has_alpha ? 12 : 8);
        if ((uint64_t)found->width * found->height <= most_pixels && found->bytes <= most_bytes &&
            !failed(heif_decode_image(handle, &image, heif_colorspace_RGB, chroma, NULL), found))
            copy_rows(image, found);
    }
    if (image) heif_image_release(image);
    if (handle) heif_image_handle_release(handle);
    heif_context_free(context);
}

void luthier_heif_free(struct luthier_heif_image* image) {
    free(image->pixels);
}
