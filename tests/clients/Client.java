import java.io.*;
import java.net.URI;
import java.net.http.*;
import java.nio.charset.StandardCharsets;
import java.nio.file.*;
import java.util.*;
import okhttp3.*;
import retrofit2.Retrofit;
import retrofit2.converter.scalars.ScalarsConverterFactory;
import retrofit2.http.Header;
import retrofit2.http.Multipart;
import retrofit2.http.POST;
import retrofit2.http.Part;

/**
 * Uploads a photo with a client of Java for each line of standard input: client, url, token, category, file, filename,
 * separated by tabs; the category "-" is none. Prints a line for each: client, version, status (0: no answer), body or error.
 */
public class Client {
    record Upload(String url, String token, String category, Path file, String filename) {}

    record Answer(String version, int status, String body) {}

    interface Api {
        @Multipart
        @POST("analyze-queue")
        retrofit2.Call<ResponseBody> upload(@Header("Authorization") String token, @Part("category") String category,
                @Part MultipartBody.Part image);
    }

    public static void main(String[] arguments) throws Exception {
        var lines = new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));
        var out = new PrintStream(new FileOutputStream(FileDescriptor.out), true, StandardCharsets.UTF_8);
        for (String line; (line = lines.readLine()) != null; ) {
            String[] words = line.split("\t");
            var upload = new Upload(words[1], words[2], words[3].equals("-") ? null : words[3], Path.of(words[4]), words[5]);
            Answer answer;
            try {
                answer = send(words[0], upload);
            } catch (Exception error) {
                answer = new Answer("?", 0, error.toString().replace("\n", " "));
            }
            out.println(String.join("\t", words[0], answer.version, "" + answer.status, answer.body));
        }
        System.exit(0);
    }

    static Answer send(String client, Upload upload) throws Exception {
        return switch (client) {
            case "Java HttpClient" -> java(upload, false);
            case "Java HttpClient, expectContinue" -> java(upload, true);
            case "OkHttp" -> okhttp(upload);
            case "Retrofit" -> retrofit(upload);
            default -> throw new IllegalArgumentException(client);
        };
    }

    // The first request of such a client offers HTTP/2 with "Upgrade: h2c".
    static Answer java(Upload upload, boolean expects) throws Exception {
        String boundary = "JavaBoundary" + UUID.randomUUID();
        var head = new StringBuilder();
        if (upload.category != null) {
            head.append("--" + boundary + "\r\nContent-Disposition: form-data; name=\"category\"\r\n\r\n" + upload.category + "\r\n");
        }
        head.append("--" + boundary + "\r\nContent-Disposition: form-data; name=\"image\"; filename=\"" + upload.filename
                + "\"\r\nContent-Type: image/png\r\n\r\n");
        var body = List.of(head.toString().getBytes(StandardCharsets.UTF_8), Files.readAllBytes(upload.file),
                ("\r\n--" + boundary + "--\r\n").getBytes(StandardCharsets.UTF_8));
        var request = HttpRequest.newBuilder(URI.create(upload.url)).expectContinue(expects)
                .header("Authorization", "Bearer " + upload.token)
                .header("Content-Type", "multipart/form-data; boundary=" + boundary)
                .POST(HttpRequest.BodyPublishers.ofByteArrays(body)).build();
        var answer = HttpClient.newHttpClient().send(request, HttpResponse.BodyHandlers.ofString());
        return new Answer(System.getProperty("java.version"), answer.statusCode(), answer.body());
    }

    static RequestBody photo(Upload upload) {
        return RequestBody.create(upload.file.toFile(), MediaType.get("image/png"));
    }

    static Answer okhttp(Upload upload) throws Exception {
        var form = new MultipartBody.Builder().setType(MultipartBody.FORM);
        if (upload.category != null) form.addFormDataPart("category", upload.category);
        form.addFormDataPart("image", upload.filename, photo(upload));
        var request = new Request.Builder().url(upload.url).header("Authorization", "Bearer " + upload.token)
                .post(form.build()).build();
        try (var answer = new OkHttpClient().newCall(request).execute()) {
            return new Answer(OkHttp.VERSION, answer.code(), answer.body().string());
        }
    }

    static Answer retrofit(Upload upload) throws Exception {
        var api = new Retrofit.Builder().baseUrl(upload.url.replaceFirst("analyze-queue$", ""))
                .addConverterFactory(ScalarsConverterFactory.create()).build().create(Api.class);
        var image = MultipartBody.Part.createFormData("image", upload.filename, photo(upload));
        var answer = api.upload("Bearer " + upload.token, upload.category, image).execute();
        var body = answer.isSuccessful() ? answer.body() : answer.errorBody();
        return new Answer(System.getProperty("retrofit.version"), answer.code(), body.string());
    }
}
