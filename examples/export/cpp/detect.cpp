// Detect in a JPEG by OpenVINO's C++ interface: detect model.xml image.jpg
//
// The file is one of
// `fpg-zoo export --model mask_rcnn_nano_fpg --output model.xml --include preprocess,masks`.

#include <cstdint>
#include <cstdio>
#include <iomanip>
#include <iostream>
#include <stdexcept>
#include <string>
#include <vector>

#include <jpeglib.h>
#include <openvino/openvino.hpp>

namespace {

struct Image {
    std::size_t height = 0, width = 0;
    std::vector<std::uint8_t> planes;  // 3 planes of height x width: red, green, blue
};

Image read_jpeg(const std::string& path) {
    std::FILE* file = std::fopen(path.c_str(), "rb");
    if (file == nullptr) throw std::runtime_error("cannot open " + path);
    jpeg_decompress_struct decoder{};
    jpeg_error_mgr errors{};
    decoder.err = jpeg_std_error(&errors);
    jpeg_create_decompress(&decoder);
    jpeg_stdio_src(&decoder, file);
    jpeg_read_header(&decoder, TRUE);
    decoder.out_color_space = JCS_RGB;
    jpeg_start_decompress(&decoder);
    Image image;
    image.height = decoder.output_height;
    image.width = decoder.output_width;
    const std::size_t pixels = image.height * image.width;
    image.planes.resize(3 * pixels);
    std::vector<std::uint8_t> row(3 * image.width);
    while (decoder.output_scanline < decoder.output_height) {
        const std::size_t y = decoder.output_scanline;
        JSAMPROW target = row.data();
        jpeg_read_scanlines(&decoder, &target, 1);
        for (std::size_t x = 0; x < image.width; ++x)
            for (std::size_t channel = 0; channel < 3; ++channel)
                image.planes[channel * pixels + y * image.width + x] = row[3 * x + channel];
    }
    jpeg_finish_decompress(&decoder);
    jpeg_destroy_decompress(&decoder);
    std::fclose(file);
    return image;
}

}  // namespace

int main(int argc, char** argv) {
    if (argc != 3) {
        std::cerr << "usage: detect model.xml image.jpg\n";
        return 2;
    }
    try {
        ov::Core core;
        // Equal to the model; without it, a processor with AMX computes in bfloat16.
        ov::CompiledModel model = core.compile_model(argv[1], "CPU", ov::hint::inference_precision(ov::element::f32));
        Image image = read_jpeg(argv[2]);
        ov::Tensor pixels(ov::element::u8, {1, 3, image.height, image.width}, image.planes.data());
        ov::InferRequest request = model.create_infer_request();
        request.set_input_tensor(pixels);
        request.infer();
        const auto count = request.get_tensor("num_detections").data<std::int64_t>()[0];
        const float* boxes = request.get_tensor("boxes").data<float>();
        const float* scores = request.get_tensor("scores").data<float>();
        const std::int64_t* labels = request.get_tensor("labels").data<std::int64_t>();
        std::cout << std::fixed;
        for (std::int64_t place = 0; place < count; ++place) {
            std::cout << labels[place] << ' ' << std::setprecision(3) << scores[place] << std::setprecision(1);
            for (int side = 0; side < 4; ++side) std::cout << ' ' << boxes[4 * place + side];
            std::cout << '\n';
        }
    } catch (const std::exception& error) {
        std::cerr << error.what() << '\n';
        return 1;
    }
    return 0;
}
